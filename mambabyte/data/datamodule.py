"""Batches of windows, for a Lightning trainer or a plain loop, in an order that can be resumed exactly."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import lightning

from mambabyte.config.settings import Settings, setting
from mambabyte.data.corpus.corpus import ByteCorpus, prepare
from mambabyte.data.settings import DataSettings
from mambabyte.data.sources.documents import DocumentSource, identity_of
from mambabyte.data.sources.mixture import MixtureSource
from mambabyte.data.tasks import Task, TaskSequences, TaskWindows
from mambabyte.data.windows.batches import Batch, StepLoader, as_tensors, step_positions
from mambabyte.data.windows.mixed import MixedWindows
from mambabyte.data.windows.permutation import SHUFFLE
from mambabyte.data.windows.shuffled import ShuffledWindows
from mambabyte.data.windows.streaming import Reader, StreamedBatches, StreamingSource, StreamPosition, Unit
from mambabyte.data.windows.workers import load_batches
from mambabyte.errors import UserError
from mambabyte.runtime.process_group import gather_objects

_WORKERS_PER_CPU = 4  # with many more, starting them takes minutes
_START = StreamPosition()._asdict()


@dataclass
class _Batches(Settings):
    context_length: int = setting(at_least=1)
    micro_batch_size: int = setting(at_least=1)
    global_batch_size: int = setting(at_least=1)
    seed: int = 0


class ByteDataModule(lightning.LightningDataModule):
    """Batches of windows to train on, and the corpus, or a task's sequences, to validate on.

    A batch holds bytes (b, L) uint8, targets (b, L) int16 (-100 where nothing is scored) and document_start
    (b, L) bool: b = micro_batch_size windows of L = context_length bytes.

    Prepared data: optimizer step s takes windows [s * G, (s + 1) * G) of the seeded order, with
    G = global_batch_size, whatever the number of ranks, workers and micro-batches. To resume, the step is
    enough.

    A task: likewise, with the sequences of its endless stream as the windows; nothing is written to disk.

    Streaming: only the validation split is written to disk. Every worker of every rank is a reader with a
    share of each epoch (streaming.Reader). Each batch has its resume position under "position"; pass that to
    `trained` once the batch has been trained on, and a checkpoint taken between optimizer steps resumes
    exactly there, with the same number of ranks and workers.

    Args:
        source: where documents come from, if not from the source that the settings describe.

    Raises:
        UserError: settings are invalid or incompatible.
    """

    def __init__(
        self,
        settings: DataSettings,
        context_length: int,
        micro_batch_size: int,
        global_batch_size: int,
        seed: int = 0,
        source: DocumentSource | None = None,
    ) -> None:
        super().__init__()
        most = _WORKERS_PER_CPU * (os.cpu_count() or 1)
        if settings.workers > most:
            raise UserError(
                f"data.workers={settings.workers} are too many processes for this machine's "
                f"{os.cpu_count() or 1} CPUs: set {most} or fewer, or 0 to read in the training process"
            )
        self.settings = settings
        self._batches = _Batches(context_length, micro_batch_size, global_batch_size, seed)
        self.source = settings.build_source() if source is None else source
        if settings.streaming and not isinstance(self.source, StreamingSource):
            raise UserError(
                "data.streaming=true needs a source that can be streamed, such as data=hf; "
                f"{type(self.source).__name__} is read from a local copy (data.streaming=false)"
            )
        # Streaming: the resume position of each worker of this rank, and which worker is next.
        self._position: dict[str, Any] = {"next_worker": 0, "places": [_START] * max(settings.workers, 1)}
        self._restored: dict[str, Any] | None = None
        self._shuffle = SHUFFLE

    def prepare_data(self) -> None:
        # Lightning calls this in one process of a machine while the others wait.
        if not (self.settings.streaming or isinstance(self.source, Task)):
            prepare(self.source, "train", self.settings.folder)

    def check(self, state: dict[str, Any] | None, world_size: int) -> None:
        """Raise UserError if a run cannot train on this data: from its beginning, or from where the ``state``
        of its checkpoint says."""
        if state is not None:
            self.load_state_dict(state)
            self._check_restored(state)
            if self.settings.streaming:
                self._position_of(0, world_size, state["positions"])
        if not self.settings.streaming:
            self._windows  # noqa: B018  # of which there must be some

    def train_corpus(self) -> ByteCorpus:
        """The training split, prepared; not for streaming, nor for a task."""
        return self._train_corpus

    def validation_corpus(self) -> ByteCorpus:
        """The validation split, or its first validation_bytes bytes; prepared for streaming too."""
        return self._validation_corpus

    def validation_data(self) -> ByteCorpus | TaskSequences:
        """What to validate on: the corpus, or a task's sequences of ``context_length`` bytes."""
        if isinstance(self.source, Task):
            return self.settings.task_sequences(self._batches.context_length)
        return self._validation_corpus

    def train_batches(
        self,
        step: int = 0,
        max_steps: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        pinned: bool = False,
    ) -> Iterator[Batch]:
        """The batches of one rank, from optimizer step ``step`` to ``max_steps`` (None: endless).

        Each step takes global_batch_size / (micro_batch_size * world_size) of them. A stream begins after the
        last batch passed to `trained`, or where a loaded state says.

        Args:
            pinned: in pinned memory, from which a GPU copies while the host goes on.
        """
        accumulation = self._accumulation(world_size)
        self._restore(step, rank, world_size)
        if not self.settings.streaming:
            return load_batches(
                self._windows,
                batch_sampler=self._positions(step, max_steps, rank, world_size),
                collate_fn=as_tensors,
                num_workers=self.settings.workers,
                pin_memory=pinned,
            )
        count = None if max_steps is None else max(max_steps - step, 0) * accumulation
        return islice(self._streamed_batches(rank, world_size, pinned), count)

    def train_dataloader(self) -> Iterable[Batch]:
        trainer = self._trainer
        rank, world_size = trainer.global_rank, trainer.world_size
        max_steps = trainer.max_steps if trainer.max_steps >= 0 else None
        accumulation = self._accumulation(world_size)
        pinned = trainer.strategy.root_device.type == "cuda"
        self._restore(trainer.global_step, rank, world_size)  # complains before training begins
        return StepLoader(
            lambda: self.train_batches(trainer.global_step, max_steps, rank, world_size, pinned),
            None if max_steps is None else max_steps * accumulation,
        )

    def trained(self, position: dict[str, Any]) -> None:
        """Note that the batch with this position has been trained on (streaming)."""
        worker, places = position["worker"], [*self._position["places"]]
        places[worker] = {key: position[key] for key in _START}
        self._position = {"next_worker": (worker + 1) % len(places), "places": places}

    def origins(self, step: int, batches: Sequence[Batch]) -> list[dict[str, Any]]:
        """Where the windows of this rank's ``batches`` of optimizer step ``step`` come from: for each window
        its document and the byte offset in it, or, when streaming, the position of its batch."""
        if self.settings.streaming:
            return [dict(batch["position"]) for batch in batches for _ in batch["bytes"]]
        batch_positions = self._positions(step, step + 1, self._trainer.global_rank, self._trainer.world_size)
        return [self._windows.origin(position) for positions in batch_positions for position in positions]

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs to resume. When streaming, a collective call: it gathers the positions."""
        state: dict[str, Any] = {"settings": self._order_settings, "shuffle": self._shuffle}
        if self.settings.streaming:
            state["source"] = identity_of(self.source, "validation")
            state["positions"] = gather_objects(self._position)
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        shuffle = state_dict.get("shuffle", 1)  # the first had no name yet
        if shuffle not in range(1, SHUFFLE + 1):
            raise UserError(
                "this run's order of windows is of another version of mambabyte; resume it with that"
            )
        self._restored, self._shuffle = state_dict, shuffle
        self.__dict__.pop("_windows", None)

    @property
    def _trainer(self) -> lightning.Trainer:
        if self.trainer is None:
            raise RuntimeError("there is no trainer; iterate over train_batches()")
        return self.trainer

    @cached_property
    def _train_corpus(self) -> ByteCorpus:
        return prepare(self.source, "train", self.settings.folder)

    @cached_property
    def _windows(self) -> ShuffledWindows | MixedWindows | TaskWindows:
        length, seed = self._batches.context_length, self._batches.seed
        if isinstance(self.source, Task):
            return TaskWindows(self.source, length, "train", seed)
        arguments = self.settings.windows, self._train_corpus, length, seed
        if isinstance(self.source, MixtureSource):
            return MixedWindows(*arguments, self.source.weights, self._shuffle)
        return ShuffledWindows(*arguments, self._shuffle)

    @cached_property
    def _validation_corpus(self) -> ByteCorpus:
        return prepare(self.source, "validation", self.settings.folder, self.settings.validation_bytes)

    @cached_property
    def _units(self) -> Sequence[Unit]:
        units = self.source.units("train")  # type: ignore[attr-defined]
        if not units:
            raise UserError("the train split of this data holds no rows; choose other data")
        return units

    @cached_property
    def _order_settings(self) -> dict[str, Any]:
        """What the order of the windows depends on, which a resumed run must not change."""
        if self.settings.streaming:
            units = json.dumps([unit.identity for unit in self._units])
            data = hashlib.sha256(units.encode()).hexdigest()
        elif isinstance(self.source, Task):
            data = hashlib.sha256(json.dumps(self.source.identity()).encode()).hexdigest()
        else:
            data = self.train_corpus().fingerprint
        settings = {
            "the training data": data,
            "data.streaming": self.settings.streaming,
            "data.windows": self.settings.windows,
            "context_length": self._batches.context_length,
            "windows in a global batch": self._batches.global_batch_size,
            "seed": self._batches.seed,
        }
        if isinstance(self.source, MixtureSource):
            settings["the weights of data.parts"] = self.source.weights
        if self.settings.streaming:
            settings["data.block_windows"] = self.settings.block_windows
        return settings

    def _accumulation(self, world_size: int) -> int:
        micro, windows = self._batches.micro_batch_size, self._batches.global_batch_size
        per_pass = micro * world_size
        if windows % per_pass:
            raise UserError(
                f"a global batch of {windows} windows cannot be divided into {world_size} x {micro} windows "
                f"at a time (ranks x trainer.micro_batch_size); make it a multiple of {per_pass}"
            )
        return windows // per_pass

    def _restore(self, step: int, rank: int, world_size: int) -> None:
        """Check the state that was loaded, if any, and take this rank's position from it."""
        restored = self._restored
        if restored is None:
            started = any(place != _START for place in self._position["places"])
            if self.settings.streaming and step and not started:
                raise UserError("this checkpoint has no stream position, so training cannot resume from it")
            return
        self._check_restored(restored)
        if self.settings.streaming:
            self._position = self._position_of(rank, world_size, restored["positions"])
        self._restored = None

    def _check_restored(self, restored: Mapping[str, Any]) -> None:
        now, then = self._order_settings, restored["settings"]
        changed = [name for name in now if now[name] != then.get(name)]
        if "the training data" in changed:
            self._check_revision(restored.get("source", {}))
        if changed:
            raise UserError(
                f"this run was trained with other settings ({', '.join(changed)}), so its place in the data "
                "is lost; put them back, or start another run with name="
            )

    def _check_revision(self, then: Mapping[str, Any]) -> None:
        now = identity_of(self.source, "validation")
        if then.get("revision") and then["revision"] != now.get("revision"):
            raise UserError(
                f"{now.get('name')} has changed on the hub since this run began: it was commit "
                f"{then['revision']} and is {now.get('revision')}; to stay on the old commit, set "
                f"data.revision={then['revision']}, or start another run with name="
            )

    def _position_of(self, rank: int, world_size: int, positions: list[dict[str, Any]]) -> dict[str, Any]:
        """One rank's position among those of all ranks."""
        if len(positions) != world_size:
            raise UserError(
                f"this run streamed its data to {len(positions)} processes and cannot go on with "
                f"{world_size}; use {len(positions)} again"
            )
        workers, now = len(positions[0]["places"]), max(self.settings.workers, 1)
        if workers != now:
            raise UserError(
                f"this run streamed its data with data.workers={workers} and cannot go on with {now}; "
                f"set data.workers={workers} again"
            )
        return positions[rank]

    def _positions(self, step: int, max_steps: int | None, rank: int, ranks: int) -> Iterator[list[int]]:
        sizes = self._batches.global_batch_size, self._batches.micro_batch_size
        return step_positions(step, max_steps, *sizes, rank, ranks)

    def _streamed_batches(self, rank: int, world_size: int, pinned: bool) -> Iterator[Batch]:
        reader = Reader(
            self._units,
            self.settings.windows,
            self._batches.context_length,
            self.settings.block_windows,
            self._batches.seed,
            rank,
            world_size,
            self._shuffle,
        )
        batches = StreamedBatches(
            reader,
            self._batches.micro_batch_size,
            self.settings.workers,
            [StreamPosition(**place) for place in self._position["places"]],
            self._position["next_worker"],
        )
        for batch in load_batches(
            batches,
            batch_size=None,
            num_workers=self.settings.workers,
            collate_fn=_unchanged,
            pin_memory=pinned,
        ):
            if isinstance(batch, UserError):
                raise batch
            yield batch


def _unchanged(batch: Any) -> Any:
    return batch
