"""Serves windows to a Lightning trainer so that the optimizer step alone says which windows come next."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning
import torch

from mambabyte.data.corpus.corpus import ByteCorpus, prepare
from mambabyte.data.sources.documents import DocumentSource, source_from_config
from mambabyte.data.windows.batches import Batch, IndexedWindows, Positions, StepLoader, as_tensors
from mambabyte.data.windows.policies import POLICIES, WindowPolicy, window_policy
from mambabyte.data.windows.streaming import Place, StreamedBatches, StreamingSource, Unit
from mambabyte.data.windows.workers import loaded
from mambabyte.errors import UserError

_START = Place()._asdict()


class ByteDataModule(lightning.LightningDataModule):
    """Batches of windows for training, and the corpus that validates it.

    A batch holds bytes (b, L) uint8, targets (b, L) int16 (-100 where nothing is scored) and document_start
    (b, L) bool, b = micro_batch_size windows of L = context_length bytes. Batches never end but for the
    trainer's max_steps, and start at `trainer.global_step`.

    Local road: windows [s * G, (s + 1) * G) of the seeded order make up optimizer step s, with
    G = global_batch_size, whatever the number of ranks, workers and micro-batches, so restoring global_step
    is all it takes to resume.

    Streaming road (streaming=True, with a source that has `units`): nothing is written but the validation
    split. Every worker of every rank is a reader with its own share of each epoch (streaming.Reader), and
    goes on to its next epoch by itself. Each batch carries the place behind it as batch["position"]; call
    `trained(batch["position"])` for every batch that was trained on, and a checkpoint taken between optimizer
    steps resumes exactly there with the same number of ranks and workers.

    Raises UserError for settings that are wrong or do not go together.
    """

    def __init__(
        self,
        source: DocumentSource,
        context_length: int,
        micro_batch_size: int,
        global_batch_size: int,
        windows: str = "random_per_document",
        seed: int = 0,
        workers: int = 0,
        folder: str | Path = "data/prepared",
        streaming: bool = False,
        validation_bytes: int | None = None,
        block_windows: int = 1024,
    ) -> None:
        super().__init__()
        _check_integer("context_length", context_length, 1)
        _check_integer("trainer.micro_batch_size", micro_batch_size, 1)
        _check_integer("the number of windows in a global batch", global_batch_size, 1)
        _check_integer("seed", seed, None)
        _check_integer("data.workers", workers, 0)
        _check_integer("data.block_windows", block_windows, 1)
        if validation_bytes is not None:
            _check_integer("data.validation_bytes", validation_bytes, 1)
        if windows not in POLICIES:
            raise UserError(f"data.windows must be one of {', '.join(POLICIES)}, not {windows!r}")
        if not isinstance(streaming, bool):
            raise UserError(f"data.streaming must be true or false, not {streaming!r}")
        if not isinstance(folder, (str, Path)) or not str(folder):
            raise UserError(f"data.folder must be a path, not {folder!r}")
        if streaming and not isinstance(source, StreamingSource):
            raise UserError(
                "data.streaming=true needs a source that can be streamed, such as data=hf; "
                f"{type(source).__name__} is read from a local copy (data.streaming=false)"
            )
        self.source = source
        self.context_length = context_length
        self.micro_batch_size = micro_batch_size
        self.global_batch_size = global_batch_size
        self.windows = windows
        self.seed = seed
        self.workers = workers
        self.folder = Path(folder)
        self.streaming = streaming
        self.validation_bytes = validation_bytes
        self.block_windows = block_windows
        # Streaming: where each worker of this rank stands behind the last trained batch, and who is next.
        self._position: dict[str, Any] = {"next_worker": 0, "places": [_START] * max(workers, 1)}
        self._restored: dict[str, Any] | None = None

    @classmethod
    def from_config(
        cls,
        data: Mapping[str, Any],
        context_length: int,
        micro_batch_size: int,
        global_batch_size: int,
        seed: int,
    ) -> ByteDataModule:
        """Build from a config's `data` section; what else stands in conf/data is shorthand for the source."""
        fields = ("windows", "workers", "folder", "streaming", "validation_bytes", "block_windows")
        return cls(
            source_from_config(data.get("source", {})),
            context_length,
            micro_batch_size,
            global_batch_size,
            seed=seed,
            **{field: data[field] for field in fields if field in data},
        )

    def prepare_data(self) -> None:
        # Lightning calls this in one process of a machine while the others wait.
        if not self.streaming:
            prepare(self.source, "train", self.folder)

    def train_corpus(self) -> ByteCorpus:
        """The prepared training split (local road)."""
        return self._policy.corpus

    def validation_corpus(self) -> ByteCorpus:
        """The validation split, prepared locally on either road; its first validation_bytes bytes if set."""
        return self._validation_corpus

    def train_dataloader(self) -> Iterable[Batch]:
        trainer = self._trainer
        per_pass = self.micro_batch_size * trainer.world_size
        if self.global_batch_size % per_pass:
            raise UserError(
                f"a global batch of {self.global_batch_size} windows cannot be shared out as "
                f"{trainer.world_size} x {self.micro_batch_size} windows at a time (ranks x "
                f"trainer.micro_batch_size); make it a multiple of {per_pass}"
            )
        self._check_restored()
        accumulation = self.global_batch_size // per_pass
        num_batches = trainer.max_steps * accumulation if trainer.max_steps >= 0 else None
        return StepLoader(self._streamed_batches if self.streaming else self._local_batches, num_batches)

    def trained(self, position: dict[str, Any]) -> None:
        """Streaming road: say that the batch with this position has been trained on."""
        place = dict(position)
        worker = place.pop("worker")
        places = [*self._position["places"]]
        places[worker] = place
        self._position = {"next_worker": (worker + 1) % len(places), "places": places}

    def origins(self, step: int, batches: Sequence[Batch]) -> list[dict[str, Any]]:
        """Where the windows of this rank's ``batches`` of optimizer step ``step``, from 0, were cut: for each
        window the document in which it begins and at which byte; of a stream, the place behind its batch."""
        if self.streaming:
            return [dict(batch["position"]) for batch in batches for _ in batch["bytes"]]
        places = self._positions(step, step + 1)
        return [self._policy.origin(place) for batch in places for place in batch]

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold to resume. Streaming: a collective call; it gathers the positions."""
        state: dict[str, Any] = {"settings": self._settings}
        if self.streaming:
            state["source"] = self.source.identity()
            state["positions"] = _gather(self._position)
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict

    @property
    def _trainer(self) -> lightning.Trainer:
        if self.trainer is None:
            raise RuntimeError("the data module serves a trainer: pass it to lightning.Trainer.fit")
        return self.trainer

    @cached_property
    def _policy(self) -> WindowPolicy:
        corpus = prepare(self.source, "train", self.folder)
        return window_policy(self.windows, corpus, self.context_length, self.seed)

    @cached_property
    def _validation_corpus(self) -> ByteCorpus:
        return prepare(self.source, "validation", self.folder, self.validation_bytes)

    @cached_property
    def _units(self) -> Sequence[Unit]:
        units = self.source.units("train")  # type: ignore[attr-defined]
        if not units:
            raise UserError("the train split of this data holds no rows; choose other data")
        return units

    @cached_property
    def _settings(self) -> dict[str, Any]:
        """What the order of the windows depends on; a run that goes on must not change it."""
        if self.streaming:
            units = json.dumps([unit.identity for unit in self._units])
            data = hashlib.sha256(units.encode()).hexdigest()
        else:
            data = self.train_corpus().fingerprint
        settings = {
            "the training data": data,
            "data.streaming": self.streaming,
            "data.windows": self.windows,
            "context_length": self.context_length,
            "windows in a global batch": self.global_batch_size,
            "seed": self.seed,
        }
        return {**settings, "data.block_windows": self.block_windows} if self.streaming else settings

    def _check_restored(self) -> None:
        if self._restored is None:
            if self.streaming and self._trainer.global_step:
                raise UserError(
                    "this checkpoint holds no place in the stream, so training cannot go on from it"
                )
            return
        now, then = self._settings, self._restored["settings"]
        changed = [name for name in now if now[name] != then.get(name)]
        if "the training data" in changed:
            self._check_revision(self._restored.get("source", {}))
        if changed:
            raise UserError(
                f"this run was trained with other settings ({', '.join(changed)}), so its place in the data "
                "is lost; put them back, or start another run with name="
            )
        if self.streaming:
            self._position = self._position_of(self._restored["positions"])

    def _check_revision(self, then: Mapping[str, Any]) -> None:
        now = self.source.identity()
        if then.get("revision") and then["revision"] != now.get("revision"):
            raise UserError(
                f"{now.get('name')} has moved on at the hub since this run began: it was commit "
                f"{then['revision']} and is {now.get('revision')}; go on with the former by "
                f"data.revision={then['revision']}, or start another run with name="
            )

    def _position_of(self, positions: list[dict[str, Any]]) -> dict[str, Any]:
        """This rank's among the positions of all ranks."""
        if len(positions) != self._trainer.world_size:
            raise UserError(
                f"this run streamed its data to {len(positions)} processes and cannot go on with "
                f"{self._trainer.world_size}; use {len(positions)} again"
            )
        workers, now = len(positions[0]["places"]), max(self.workers, 1)
        if workers != now:
            raise UserError(
                f"this run streamed its data with data.workers={workers} and cannot go on with {now}; "
                f"set data.workers={workers} again"
            )
        return positions[self._trainer.global_rank]

    def _local_batches(self) -> Iterator[Batch]:
        positions = self._positions(self._trainer.global_step, self._trainer.max_steps)
        windows = IndexedWindows(self._policy)
        yield from loaded(windows, batch_sampler=positions, collate_fn=as_tensors, num_workers=self.workers)

    def _positions(self, step: int, max_steps: int) -> Positions:
        """Those of this rank, from one optimizer step to another."""
        return Positions(
            step,
            max_steps,
            self.global_batch_size,
            self.micro_batch_size,
            self._trainer.world_size,
            self._trainer.global_rank,
        )

    def _streamed_batches(self) -> Iterator[Batch]:
        batches = StreamedBatches(
            self._units,
            self.windows,
            self.context_length,
            self.block_windows,
            self.micro_batch_size,
            self.seed,
            self._trainer.global_rank,
            self._trainer.world_size,
            self.workers,
            [Place(**place) for place in self._position["places"]],
            self._position["next_worker"],
        )
        for batch in loaded(batches, batch_size=None, num_workers=self.workers, collate_fn=_same):
            if isinstance(batch, UserError):
                raise batch
            yield batch


def _same(item: Any) -> Any:
    return item


def _gather(position: dict[str, Any]) -> list[dict[str, Any]]:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [position]
    positions: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(positions, position)
    return positions


def _check_integer(name: str, value: Any, minimum: int | None) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or (minimum is not None and value < minimum):
        least = "" if minimum is None else f" of at least {minimum}"
        raise UserError(f"{name} must be an integer{least}, not {value!r}")
