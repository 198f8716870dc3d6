"""metrics.csv, a row per logged step from which every plot of a run is made, and the progress line."""

import time
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from mambabyte.models.training_flops import training_flops_per_byte
from mambabyte.runs.metrics_csv import ACCURACY, append_metrics, is_of_some_runs, read_metrics, write_metrics
from mambabyte.runtime.memory import PeakMemory
from mambabyte.runtime.progress import StatusLine
from mambabyte.runtime.units import byte_count, duration
from mambabyte.training.callbacks.step_callback import StepCallback, is_due
from mambabyte.training.module import ByteLMModule
from mambabyte.training.planning.peak_flops import peak_flops, utilization
from mambabyte.training.settings import TrainSettings

# of the progress line, where it is longer than the terminal is wide
_LEFT_OUT_FIRST = ("utilization", "bytes", "gradient", "learning rate", "speed", "validation")


class Metrics(StepCallback):
    """Writes a row every ``log_every`` steps and at validations; also to the progress line and the logger.

    ``bytes`` (in all windows so far), ``seconds`` (spent on steps) and ``skipped_steps`` (those the optimizer
    did not take) are totals of the run, resumptions included. ``bits_per_byte``, ``bytes_per_second`` and
    ``clipped_share`` (of steps, those with a clipped gradient) are over the steps since the last row.
    ``peak_memory_bytes`` is this rank's since this process started training. ``model_flops_utilization``
    is the model's analytic FLOPs over the devices' peak (planning/peak_flops.py), empty if that is not known.
    The other callbacks add their :meth:`~StepCallback.columns`; they must come before this one.
    """

    _module: ByteLMModule

    def __init__(self, settings: TrainSettings) -> None:
        self._path = settings.run_dir / "metrics.csv"
        self._settings = settings
        self._bytes_per_step = settings.trainer.global_batch_bytes
        self._seconds = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.training_seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._seconds = float(state_dict["seconds"])

    @property
    def training_seconds(self) -> float:
        """Spent on steps so far, earlier sittings included: what a time budget counts. On Linux and macOS
        the clock stands still while a laptop sleeps."""
        return self._seconds + self._since_row()

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        super().on_train_start(trainer, module)
        assert isinstance(module, ByteLMModule)
        self._module = module
        if trainer.is_global_zero:
            self._line = ProgressLine(
                module.max_steps,
                self._bytes_per_step,
                trainer.global_step,
                self._settings.budget.training_seconds,
                self._settings.data.is_task,
            )
            self._line.begin()
            # steps after the checkpoint are repeated: drop their rows
            keep = [row for row in read_metrics(self._path) if row["step"] <= trainer.global_step]
            columns = [name for each in self._others(trainer) for name in each.columns()]
            write_metrics(self._path, keep, filter(is_of_some_runs, columns))
            self._flops_per_byte = training_flops_per_byte(
                module.model.config, self._settings.context_length, self._settings.lora, self._settings.freeze
            )
            self._peak = peak_flops(trainer.strategy.root_device, self._settings.trainer.precision)
        self._first_step = trainer.global_step + 1
        self._memory = PeakMemory(trainer.strategy.root_device)
        self._begin_row(trainer.global_step)

    def is_logged(self, step: int) -> bool:
        """Whether a row is written after ``step``."""
        every = self._settings.callbacks
        return (
            is_due(step, every.log_every)
            or is_due(step, every.validate_every)
            or step == self._module.max_steps
        )

    def on_step(self, trainer: Trainer, module: ByteLMModule, step: int) -> None:
        first = step == self._first_step
        if not self.is_logged(step):
            if first and trainer.is_global_zero:
                self._line.show(self._row(trainer, step), urgent=True)
            return
        module.check_spikes(wait=True)
        row = self._row(trainer, step) if trainer.is_global_zero else {}
        self._seconds += self._since_row()
        module.begin_row()
        self._begin_row(step)
        if not row:
            return
        for callback in self._others(trainer):
            row.update(callback.columns())
        append_metrics(self._path, row)
        self._line.max_steps = module.max_steps
        self._line.show(row, final=step == module.max_steps, urgent=first)
        values = {name: value for name, value in row.items() if name != "step" and value is not None}
        for logger in trainer.loggers:
            logger.log_metrics(values, step=step)

    def _others(self, trainer: Trainer) -> list[StepCallback]:
        return [each for each in trainer.callbacks if isinstance(each, StepCallback)]  # type: ignore[attr-defined]

    def _row(self, trainer: Trainer, step: int) -> dict[str, Any]:
        """The row of the steps since the last one, without what the other callbacks add."""
        seconds = self._since_row()
        speed = (step - self._row_step) * self._bytes_per_step / max(seconds, 1e-9)
        return {
            "step": step,
            "bytes": step * self._bytes_per_step,
            "seconds": self._seconds + seconds,
            **self._module.row(),
            "learning_rate": self._module.learning_rate_at(step - 1),
            "gradient_norm": float(self._module.gradient_norm),
            "bytes_per_second": speed,
            "model_flops_utilization": utilization(
                speed * self._flops_per_byte, self._peak, trainer.world_size
            ),
            "peak_memory_bytes": self._memory.bytes(),
        }

    def _begin_row(self, step: int) -> None:
        self._row_step = step
        self._row_start = time.perf_counter() - self._module.seconds_excluded

    def _since_row(self) -> float:
        return time.perf_counter() - self._module.seconds_excluded - self._row_start


class ProgressLine:
    """Shows rows of metrics on stderr: rewritten in place on a terminal, else a line every ten seconds.

    Args:
        training_seconds: of the run, where ``max_steps`` is not decided yet.
        of_task: only answers are scored, and validation is shown as the share of them that is right.

    Attributes:
        max_steps: the run's; None while the clock has not decided them.
    """

    def __init__(
        self,
        max_steps: int | None,
        bytes_per_step: int,
        first_step: int,
        training_seconds: float | None = None,
        of_task: bool = False,
    ) -> None:
        self.max_steps = max_steps
        self._bytes_per_step = bytes_per_step
        self._training_seconds = training_seconds
        self._validation: float | None = None
        self._of_task = of_task
        self._bar = StatusLine(initial=first_step, bar_format="{desc}")

    def begin(self) -> None:
        """Show that training has begun, since the first step can take minutes."""
        step = self._of_all(self._bar.initial)
        self._bar.set_description_str(f"{step} | waiting for the first step", refresh=True)

    def show(self, row: Mapping[str, Any], final: bool = False, urgent: bool = False) -> None:
        """Show a row of metrics if it is ``final`` or ``urgent``, or if the last was shown long ago."""
        validation = row.get(ACCURACY[0] if self._of_task else "validation_bits_per_byte")
        self._validation = self._validation if validation is None else validation
        self._bar.set_description_str(self._text(row), refresh=False)
        if urgent:
            self._bar.mininterval = 0
        if final:
            self._bar.close()
        else:
            self._bar.update(row["step"] - self._bar.n)

    def _text(self, row: Mapping[str, Any]) -> str:
        step, max_steps = row["step"], self.max_steps
        if max_steps is None:
            all_bytes, left = None, max(0.0, (self._training_seconds or 0.0) - row["seconds"])
        else:
            # wall time of this process, validation and samples included
            seconds_per_step = self._bar.format_dict["elapsed"] / max(1, step - self._bar.initial)
            all_bytes, left = max_steps * self._bytes_per_step, (max_steps - step) * seconds_per_step
        used, validation = row["model_flops_utilization"], self._validation
        parts = {
            "step": self._of_all(step),
            "loss": f"{row['bits_per_byte']:.3f} {'bits per answer' if self._of_task else 'bpb'}",
            "validation": None if validation is None else self._in_words(validation),
            "learning rate": f"lr {row['learning_rate']:.1e}",
            "gradient": f"gradient {row['gradient_norm']:.2f}",
            "speed": f"{byte_count(row['bytes_per_second'])}/s",
            "utilization": f"mfu {100 * used:.1f} %" if used is not None else None,
            "bytes": byte_count(row["bytes"], of=all_bytes),
            "time left": f"eta {duration(left)}",
        }
        shown = {name: text for name, text in parts.items() if text}
        for name in _LEFT_OUT_FIRST:
            if self._bar.width is not None and len(" | ".join(shown.values())) > self._bar.width:
                shown.pop(name, None)
        return " | ".join(shown.values())

    def _in_words(self, validation: float) -> str:
        return f"{100 * validation:.1f} % right" if self._of_task else f"{validation:.3f} validation bpb"

    def _of_all(self, step: int) -> str:
        return f"step {step}" if self.max_steps is None else f"step {step}/{self.max_steps}"
