"""The line that shows how training is going."""

from collections.abc import Mapping
from typing import Any

from mambabyte.runtime.progress import StatusLine
from mambabyte.runtime.units import byte_count, duration


class ProgressLine:
    """Shows rows of metrics on stderr: rewritten in place on a terminal, else a line every ten seconds."""

    def __init__(self, max_steps: int, bytes_per_step: int, first_step: int) -> None:
        self._bytes_per_step = bytes_per_step
        self._validation: float | None = None
        self._bar = StatusLine(total=max_steps, initial=first_step, bar_format="{desc}")

    def show(self, row: Mapping[str, Any], final: bool) -> None:
        """Show a row of metrics, unless the last one was a moment ago; ``final`` rows are always shown."""
        self._validation = row["validation_bits_per_byte"] or self._validation
        self._bar.set_description_str(self._text(row), refresh=False)
        if final:
            self._bar.close()
        else:
            self._bar.update(row["step"] - self._bar.n)

    def _text(self, row: Mapping[str, Any]) -> str:
        step, max_steps = row["step"], self._bar.total
        # wall time of this sitting, validation and samples included
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
