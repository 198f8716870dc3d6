"""Serves windows to a Lightning trainer, or to a plain loop, so that the optimizer step says which come next."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import lightning
import torch

from mambabyte.config.settings import Settings, setting
from mambabyte.data.corpus.corpus import ByteCorpus, prepare
from mambabyte.data.settings import DataSettings
from mambabyte.data.sources.documents import DocumentSource
from mambabyte.data.windows.batches import Batch, StepLoader, StepSampler, as_tensors
from mambabyte.data.windows.shuffled import ShuffledWindows
from mambabyte.data.windows.streaming import Reader, StreamedBatches, StreamingSource, StreamPosition, Unit
from mambabyte.data.windows.workers import loaded
from mambabyte.errors import UserError

_START = StreamPosition()._asdict()


@dataclass
class _Batches(Settings):
    context_length: int = setting(at_least=1)
    micro_batch_size: int = setting(at_least=1)
    global_batch_size: int = setting(at_least=1)
    seed: int = 0


class ByteDataModule(lightning.LightningDataModule):
    """Batches of windows for training, and the corpus that validates it.

    A batch holds bytes (b, L) uint8, targets (b, L) int16 (-100 where nothing is scored) and document_start
    (b, L) bool: b = micro_batch_size windows of L = context_length bytes.

    Local road: windows [s * G, (s + 1) * G) of the seeded order make up optimizer step s, with
    G = global_batch_size, whatever the number of ranks, workers and micro-batches. The step is all it takes to
    resume.

    Streaming road: nothing is written but the validation split. Every worker of every rank is a reader with
    its own share of each epoch (streaming.Reader). Each batch carries the position to resume at after it as
    batch["position"]; call `trained(batch["position"])` for every batch that was trained on, and a checkpoint
    taken between optimizer steps resumes exactly there, with the same number of ranks and workers.

    Args:
        source: where documents come from, instead of what the settings describe.

    Raises:
        UserError: settings are wrong or do not go together.
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
        self.settings = settings
        self._batches = _Batches(context_length, micro_batch_size, global_batch_size, seed)
        self.source = settings.build_source() if source is None else source
        if settings.streaming and not isinstance(self.source, StreamingSource):
            raise UserError(
                "data.streaming=true needs a source that can be streamed, such as data=hf; "
                f"{type(self.source).__name__} is read from a local copy (data.streaming=false)"
            )
        # Streaming: where each worker of this rank resumes after the last trained batch, and whose turn it is.
        self._position: dict[str, Any] = {"next_worker": 0, "places": [_START] * max(settings.workers, 1)}
        self._restored: dict[str, Any] | None = None

    def prepare_data(self) -> None:
        # Lightning calls this in one process of a machine while the others wait.
        if not self.settings.streaming:
            prepare(self.source, "train", self.settings.folder)

    def train_corpus(self) -> ByteCorpus:
        """The prepared training split (local road)."""
        return self._windows.corpus

    def validation_corpus(self) -> ByteCorpus:
        """The validation split, prepared locally on either road; its first validation_bytes bytes if set."""
        return self._validation_corpus

    def train_batches(
        self, step: int = 0, max_steps: int | None = None, rank: int = 0, world_size: int = 1
    ) -> Iterator[Batch]:
        """The batches of one rank, from optimizer step ``step`` to ``max_steps`` (None: endless).

        Each step has global_batch_size / (micro_batch_size * world_size) of them. A stream begins at the
        position of the state that was loaded.
        """
        accumulation = self._accumulation(world_size)
        self._restore(step, rank, world_size)
        if not self.settings.streaming:
            return self._local_batches(self._sampler(step, max_steps, rank, world_size))
        count = None if max_steps is None else max(max_steps - step, 0) * accumulation
        return islice(self._streamed_batches(rank, world_size), count)

    def train_dataloader(self) -> Iterable[Batch]:
        trainer = self._trainer
        rank, world_size = trainer.global_rank, trainer.world_size
        max_steps = trainer.max_steps if trainer.max_steps >= 0 else None
        accumulation = self._accumulation(world_size)
        self._restore(trainer.global_step, rank, world_size)  # complains before training begins
        return StepLoader(
            lambda: self.train_batches(trainer.global_step, max_steps, rank, world_size),
            None if max_steps is None else max_steps * accumulation,
        )

    def trained(self, position: dict[str, Any]) -> None:
        """Streaming road: the batch with this position has been trained on."""
        resume_at = dict(position)
        worker = resume_at.pop("worker")
        places = [*self._position["places"]]
        places[worker] = resume_at
        self._position = {"next_worker": (worker + 1) % len(places), "places": places}

    def origins(self, step: int, batches: Sequence[Batch]) -> list[dict[str, Any]]:
        """Where the windows of this rank's ``batches`` of optimizer step ``step``, from 0, were cut: for each
        window the document in which it begins and at which byte; of a stream, its batch's position."""
        if self.settings.streaming:
            return [dict(batch["position"]) for batch in batches for _ in batch["bytes"]]
        sampler = self._sampler(step, step + 1, self._trainer.global_rank, self._trainer.world_size)
        return [self._windows.origin(position) for positions in sampler for position in positions]

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold to resume. Streaming: a collective call; it gathers the positions."""
        state: dict[str, Any] = {"settings": self._order_settings}
        if self.settings.streaming:
            state["source"] = self.source.identity()
            state["positions"] = _gather(self._position)
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict

    @property
    def _trainer(self) -> lightning.Trainer:
        if self.trainer is None:
            raise RuntimeError("without a trainer, use train_batches()")
        return self.trainer

    @cached_property
    def _windows(self) -> ShuffledWindows:
        corpus = prepare(self.source, "train", self.settings.folder)
        batches = self._batches
        return ShuffledWindows(self.settings.windows, corpus, batches.context_length, batches.seed)

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
        """What the order of the windows depends on; a run that is resumed must not change it."""
        if self.settings.streaming:
            units = json.dumps([unit.identity for unit in self._units])
            data = hashlib.sha256(units.encode()).hexdigest()
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
        if self.settings.streaming:
            settings["data.block_windows"] = self.settings.block_windows
        return settings

    def _accumulation(self, world_size: int) -> int:
        micro, windows = self._batches.micro_batch_size, self._batches.global_batch_size
        per_pass = micro * world_size
        if windows % per_pass:
            raise UserError(
                f"a global batch of {windows} windows cannot be shared out as {world_size} x {micro} windows "
                f"at a time (ranks x trainer.micro_batch_size); make it a multiple of {per_pass}"
            )
        return windows // per_pass

    def _restore(self, step: int, rank: int, world_size: int) -> None:
        """Check the state that was loaded, if any, and take this rank's position from it."""
        restored = self._restored
        if restored is None:
            if (
                self.settings.streaming
                and step
                and all(place == _START for place in self._position["places"])
            ):
                raise UserError(
                    "this checkpoint holds no place in the stream, so training cannot go on from it"
                )
            return
        now, then = self._order_settings, restored["settings"]
        changed = [name for name in now if now[name] != then.get(name)]
        if "the training data" in changed:
            self._check_revision(restored.get("source", {}))
        if changed:
            raise UserError(
                f"this run was trained with other settings ({', '.join(changed)}), so its place in the data "
                "is lost; put them back, or start another run with name="
            )
        if self.settings.streaming:
            self._position = self._position_of(rank, world_size, restored["positions"])
        self._restored = None

    def _check_revision(self, then: Mapping[str, Any]) -> None:
        now = self.source.identity()
        if then.get("revision") and then["revision"] != now.get("revision"):
            raise UserError(
                f"{now.get('name')} has moved on at the hub since this run began: it was commit "
                f"{then['revision']} and is {now.get('revision')}; go on with the former by "
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

    def _sampler(self, step: int, max_steps: int | None, rank: int, world_size: int) -> StepSampler:
        batches = self._batches
        return StepSampler(
            step, max_steps, batches.global_batch_size, batches.micro_batch_size, rank, world_size
        )

    def _local_batches(self, sampler: StepSampler) -> Iterator[Batch]:
        yield from loaded(
            self._windows, batch_sampler=sampler, collate_fn=as_tensors, num_workers=self.settings.workers
        )

    def _streamed_batches(self, rank: int, world_size: int) -> Iterator[Batch]:
        reader = Reader(
            self._units,
            self.settings.windows,
            self._batches.context_length,
            self.settings.block_windows,
            self._batches.seed,
            rank,
            world_size,
        )
        batches = StreamedBatches(
            reader,
            self._batches.micro_batch_size,
            self.settings.workers,
            [StreamPosition(**place) for place in self._position["places"]],
            self._position["next_worker"],
        )
        for batch in loaded(
            batches, batch_size=None, num_workers=self.settings.workers, collate_fn=_unchanged
        ):
            if isinstance(batch, UserError):
                raise batch
            yield batch


def _unchanged(batch: Any) -> Any:
    return batch


def _gather(position: dict[str, Any]) -> list[dict[str, Any]]:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [position]
    positions: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(positions, position)
    return positions
