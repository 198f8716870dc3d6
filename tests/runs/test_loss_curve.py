"""The curve of a run."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.cbook import is_math_text

from mambabyte.runs.loss_curve import literal, plot_loss_curve, smooth


def row(step: int, validation: float | None = None) -> dict:
    return {"bytes": step * 100, "bits_per_byte": 8 / step, "validation_bits_per_byte": validation}


def test_smoothing_is_a_mean_of_what_was_seen() -> None:
    assert smooth(np.full(5, 3.0)) == pytest.approx(np.full(5, 3.0))
    # 20 values: a weight of a half
    assert smooth(np.array([1.0, 2.0] * 10))[1] == pytest.approx((0.5 * 1 + 2) / 1.5)


@pytest.mark.parametrize(
    "rows", [[], [row(1)], [row(step, 2.0 if step % 2 else None) for step in range(1, 9)]]
)
def test_the_curve_is_drawn_from_any_number_of_rows(rows: list, tmp_path: Path) -> None:
    path = tmp_path / "curve.png"
    plot_loss_curve(rows, {"gzip -9": 2.1, "xz -9e": 1.9, "zstd -19": 2.0}, 1.5, "a run", path)
    assert path.read_bytes().startswith(b"\x89PNG")
    path.unlink()
    plot_loss_curve(rows, {}, None, "a run that was not measured", path)
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["a$x_$b", "$\\frac{$", "50 % {x}^_ $", r"a\$x_$b", "$$"])
def test_a_name_is_no_formula(name: str, tmp_path: Path) -> None:
    plot_loss_curve([row(1)], {}, 1.5, name, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").exists()
    assert not is_math_text(literal(name))
