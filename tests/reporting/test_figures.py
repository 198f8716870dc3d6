"""The figures of a report."""

from __future__ import annotations

import io
from dataclasses import replace

from matplotlib.cbook import is_math_text

from mambabyte.reporting import compare
from mambabyte.reporting.figures import FIGURES, draw
from mambabyte.runs.run import read_run


def test_text_of_a_user_is_no_formula(write_run) -> None:
    (comparison,) = compare([read_run(write_run(name)) for name in ("a$x_$b", "b")])[0]
    canvas = draw(FIGURES[0], [replace(comparison, labels=["a$x_$b", "$x^"], measured_on="on $x_$y")])
    canvas.savefig(io.BytesIO(), format="png")  # raises where matplotlib takes text for a formula
    (axes,) = canvas.axes
    shown = [axes.title, *axes.get_legend().get_texts()]
    assert not any(is_math_text(text.get_text()) for text in shown)
