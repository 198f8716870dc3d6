"""Spikes: steps whose loss or gradient would harm the model. They are skipped and their windows saved."""

import math
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from mambabyte.errors import UserError
from mambabyte.runtime.atomic_write import atomic_write
from mambabyte.runtime.valid_json import valid_json
from mambabyte.training.readback import DeferredReadback
from mambabyte.training.settings import TrainSettings

HISTORY = 128  # steps that the mean and the standard deviation are taken over
MIN_HISTORY = HISTORY // 2
_MAX_IN_A_ROW = 10


@dataclass(frozen=True)
class Spike:
    """A step that the optimizer did not take.

    Attributes:
        step: counted from 1.
        loss: nats per byte over all ranks.
        gradient_norm: before clipping, over all ranks.
        in_a_row: consecutive spikes, this one included.
        micro_batches: this rank's, each with its windows' nats (b,) and scored bytes (b,).
    """

    step: int
    loss: float
    gradient_norm: float
    in_a_row: int
    micro_batches: list[tuple[dict[str, Any], Tensor, Tensor]]


class SpikeDetector:
    """Judges each optimizer step by its loss and its gradient norm before clipping.

    A step is a spike if either is not finite or, given a ``threshold``, exceeds its mean over the last 128
    normal steps by more than ``threshold`` standard deviations, once there are 64 of them: the rule of
    OLMo-core's skip-step optimizers, whose threshold is 6. Everything is computed on the device; a step's
    windows are kept until its verdict has reached the host.
    """

    def __init__(self, threshold: float | None, device: torch.device) -> None:
        self._threshold = threshold
        self._normal = torch.full((2, HISTORY), torch.nan, device=device)  # loss, gradient norm; newest last
        self._skipped = torch.zeros(2, device=device)  # steps in total; in a row
        self._verdicts = DeferredReadback()
        self._windows: dict[int, list[tuple[dict[str, Any], Tensor, Tensor]]] = defaultdict(list)

    def state_dict(self) -> dict[str, Tensor]:
        return {"usual": self._normal, "skipped": self._skipped}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._normal.copy_(state["usual"])
        self._skipped.copy_(state["skipped"])

    def record(self, step: int, batch: dict[str, Any], nats: Tensor, scored: Tensor) -> None:
        """Keep a micro-batch, with each window's nats (b,) and scored bytes (b,), until its verdict."""
        self._windows[step].append((batch, nats, scored))

    def judge(self, step: int, loss: Tensor, gradient_norm: Tensor) -> Tensor:
        """() float: 1 if the optimizer must skip the step, else 0. All ranks must pass the same values."""
        values = torch.stack((loss, gradient_norm)).float()
        spike = ~values.isfinite().all()
        if self._threshold is not None:
            spike |= (values > self._limits(self._threshold)).any()
            newer = torch.cat((self._normal[:, 1:], values[:, None]), dim=1)
            self._normal = torch.where(spike, self._normal, newer)
        total, in_a_row = self._skipped
        self._skipped = torch.stack((total + spike, (in_a_row + 1) * spike))
        self._verdicts.start(step, torch.cat((spike[None].float(), values, self._skipped)))
        return spike.float()

    def found(self, wait: bool) -> list[Spike]:
        """The spikes whose verdicts are newly available; with ``wait``, those of all steps judged so far."""
        spikes = []
        for step, (is_spike, loss, norm, _, in_a_row) in self._verdicts.completed(wait):
            windows = self._windows.pop(step)
            if is_spike:
                spikes.append(Spike(step, loss, norm, int(in_a_row), windows))
        return spikes

    @property
    def skipped_steps(self) -> int:
        """How many steps of the run were skipped. Waits for the device."""
        return int(self._skipped[0])

    def _limits(self, threshold: float) -> Tensor:
        count = (~self._normal.isnan()).sum(dim=1)
        mean = self._normal.nanmean(dim=1)
        deviation = ((self._normal - mean[:, None]).square().nansum(dim=1) / count.clamp(min=1)).sqrt()
        return torch.where(count >= MIN_HISTORY, mean + threshold * deviation, torch.inf)


class SpikePolicy:
    """Saves the windows of a spike to ``run_dir``/spikes, then stops the run or lets it skip the step."""

    def __init__(self, settings: TrainSettings) -> None:
        self._folder = settings.run_dir / "spikes"
        self._skip = settings.trainer.on_spike == "skip"

    def apply(self, spike: Spike, trainer: Trainer) -> None:
        """Save the windows of ``spike`` and report it.

        Raises:
            UserError: ``trainer.on_spike`` is ``stop``, or this is the tenth spike in a row.
        """
        path = self._save(spike, trainer)
        finite = math.isfinite(spike.loss) and math.isfinite(spike.gradient_norm)
        what = "is far above its usual size" if finite else "is not a finite number"
        if self._skip and spike.in_a_row < _MAX_IN_A_ROW:
            if trainer.is_global_zero:
                skipped = f"skipped step {spike.step}, whose loss or gradient {what}; its windows: {path}"
                print(f"mambabyte: {skipped}", file=sys.stderr)
            return
        since = f", the last of {spike.in_a_row} in a row," if self._skip else ""
        raise UserError(
            f"training diverged: at step {spike.step}{since} the loss or its gradient {what} (its windows: "
            f"{path}); the last checkpoint, if there is one, predates it: set trainer.on_spike=skip and "
            "repeat the command, or begin a run with another name= and a lower optimizer.learning_rate or "
            "trainer.gradient_clip"
        )

    def _save(self, spike: Spike, trainer: Trainer) -> Path:
        """Write the inputs and targets (.npz), and their origins and scores (.json)."""
        rank = f"_rank_{trainer.global_rank}" if trainer.world_size > 1 else ""
        path = self._folder / f"step_{spike.step:08d}{rank}.json"
        batches, nats, scored = zip(*spike.micro_batches, strict=True)
        names = ("bytes", "targets", "document_start")
        parts = {name: [torch.as_tensor(batch[name]) for batch in batches] for name in names}
        arrays = {name: torch.cat(tensors).cpu().numpy() for name, tensors in parts.items()}
        origins = trainer.datamodule.origins(spike.step - 1, batches)  # type: ignore[attr-defined]
        scores = zip(torch.cat(nats).tolist(), torch.cat(scored).tolist(), origins, strict=True)
        description = {
            "step": spike.step,
            "loss": _json(spike.loss),
            "gradient_norm": _json(spike.gradient_norm),
            "windows": [{"nats": _json(n), "scored_bytes": count, **origin} for n, count, origin in scores],
        }
        self._folder.mkdir(exist_ok=True)
        with atomic_write(path.with_suffix(".npz")) as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        with atomic_write(path) as file:
            file.write(valid_json(description, indent=2).encode())
        return path


def _json(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)  # JSON has neither nan nor inf
