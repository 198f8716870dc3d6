"""metrics.csv, a row per logged step from which every plot of a run is made, and the progress line."""

import time
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from mambabyte.runs.metrics_csv import append_metrics, read_metrics, write_metrics
from mambabyte.runtime.memory import PeakMemory
from mambabyte.runtime.progress import StatusLine
from mambabyte.runtime.units import byte_count, duration
from mambabyte.training.callbacks.step_callback import StepCallback, is_due
from mambabyte.training.module import ByteLMModule
from mambabyte.training.planning.peak_flops import peak_flops
from mambabyte.training.settings import TrainSettings


class Metrics(StepCallback):
    """Writes a row every ``log_every`` steps and at validations; also to the progress line and the logger.

    ``bytes`` (in all windows so far), ``seconds`` (spent on steps) and ``skipped_steps`` (those the optimizer
    did not take) are totals of the run, resumptions included. ``bits_per_byte``, ``bytes_per_second`` and
    ``clipped_share`` (of steps, those with a clipped gradient) are over the steps since the last row.
    ``peak_memory_bytes`` is this rank's since this process started training. ``model_flops_utilization``
    is the model's analytic FLOPs over the devices' peak (planning/peak_flops.py). The other callbacks add
    their :meth:`~StepCallback.columns`; they must come before this one.
    """

    _module: ByteLMModule

    def __init__(self, settings: TrainSettings) -> None:
        self._path = settings.run_dir / "metrics.csv"
        self._settings = settings
        self._max_steps = settings.trainer.max_steps
        self._bytes_per_step = settings.trainer.global_batch_bytes
        self._seconds = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self._seconds + self._since_row()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._seconds = float(state_dict["seconds"])

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        super().on_train_start(trainer, module)
        assert isinstance(module, ByteLMModule)
        self._module = module
        self._line = ProgressLine(self._max_steps, self._bytes_per_step, trainer.global_step)
        if trainer.is_global_zero:
            # steps after the checkpoint are repeated: drop their rows
            keep = [row for row in read_metrics(self._path) if row["step"] <= trainer.global_step]
            write_metrics(self._path, keep)
            flops_per_byte = module.model.flops_per_byte(self._settings.context_length).training
            peak = peak_flops(trainer.strategy.root_device, self._settings.trainer.precision)
            self._seconds_per_byte = flops_per_byte / (peak.flops * trainer.world_size)
        self._memory = PeakMemory(trainer.strategy.root_device)
        self._begin_row(trainer.global_step)

    def is_logged(self, step: int) -> bool:
        """Whether a row is written after ``step``."""
        every = self._settings.callbacks
        return is_due(step, every.log_every) or is_due(step, every.validate_every) or step == self._max_steps

    def on_step(self, trainer: Trainer, module: ByteLMModule, step: int) -> None:
        if not self.is_logged(step):
            return
        module.check_spikes(wait=True)
        seconds = self._since_row()
        self._seconds += seconds
        speed = (step - self._row_step) * self._bytes_per_step / max(seconds, 1e-9)
        row: dict[str, Any] = {
            "step": step,
            "bytes": step * self._bytes_per_step,
            "seconds": self._seconds,
            **module.take_row(),
            "learning_rate": module.learning_rate_at(step - 1),
            "gradient_norm": float(module.gradient_norm),
            "bytes_per_second": speed,
            "peak_memory_bytes": self._memory.bytes(),
        }
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, StepCallback):
                row.update(callback.columns())
        self._begin_row(step)
        if trainer.is_global_zero:
            row["model_flops_utilization"] = speed * self._seconds_per_byte
            append_metrics(self._path, row)
            self._line.show(row, final=step == self._max_steps)
            values = {name: value for name, value in row.items() if name != "step" and value is not None}
            for logger in trainer.loggers:
                logger.log_metrics(values, step=step)

    def _begin_row(self, step: int) -> None:
        self._row_step = step
        self._row_start = time.perf_counter() - self._module.seconds_excluded

    def _since_row(self) -> float:
        return time.perf_counter() - self._module.seconds_excluded - self._row_start


class ProgressLine:
    """Shows rows of metrics on stderr: rewritten in place on a terminal, else a line every ten seconds."""

    def __init__(self, max_steps: int, bytes_per_step: int, first_step: int) -> None:
        self._bytes_per_step = bytes_per_step
        self._validation: float | None = None
        self._bar = StatusLine(total=max_steps, initial=first_step, bar_format="{desc}")

    def show(self, row: Mapping[str, Any], final: bool) -> None:
        """Show a row of metrics if it is ``final`` or the last one was shown long enough ago."""
        self._validation = row["validation_bits_per_byte"] or self._validation
        self._bar.set_description_str(self._text(row), refresh=False)
        if final:
            self._bar.close()
        else:
            self._bar.update(row["step"] - self._bar.n)

    def _text(self, row: Mapping[str, Any]) -> str:
        step, max_steps = row["step"], self._bar.total
        # wall time of this process, validation and samples included
        seconds_per_step = self._bar.format_dict["elapsed"] / max(1, step - self._bar.initial)
        parts = [
            f"step {step}/{max_steps}",
            f"{row['bits_per_byte']:.3f} bpb",
            *([f"{self._validation:.3f} validation bpb"] if self._validation else []),
            f"lr {row['learning_rate']:.1e}",
            f"gradient {row['gradient_norm']:.2f}",
            f"{byte_count(row['bytes_per_second'])}/s",
            f"mfu {100 * row['model_flops_utilization']:.1f} %",
            byte_count(row["bytes"], of=max_steps * self._bytes_per_step),
            f"eta {duration((max_steps - step) * seconds_per_step)}",
        ]
        return " | ".join(parts)
