"""The bars of the tasks' accuracies."""

from __future__ import annotations

import pytest

from mambabyte.reporting.task_figures import TaskResult, draw_split


def test_a_bar_for_each_block_of_each_mixer_is_the_mean_of_its_runs() -> None:
    canvas = draw_split(
        [
            TaskResult("copying", "s4", "plain", 1.0, 0.07),
            TaskResult("selective copying", "s4", "plain", 0.2, 0.07),
            TaskResult("selective copying", "s4", "plain", 0.3, 0.07),
            TaskResult("selective copying", "s4", "mamba", 0.5, 0.07),
            TaskResult("selective copying", "s6", "mamba", 0.99, 0.07),
        ]
    )
    copying, selective = canvas.axes
    assert [axes.get_title() for axes in canvas.axes] == ["copying", "selective copying"]
    assert [bar.get_height() for bar in copying.patches] == [100.0]
    assert [bar.get_height() for bar in selective.patches] == [pytest.approx(25), 50, 99]
    colours = [bar.get_facecolor() for bar in selective.patches]
    assert colours[0] == copying.patches[0].get_facecolor() != colours[1] == colours[2]
    centres = [bar.get_x() + bar.get_width() / 2 for bar in selective.patches]
    assert centres == pytest.approx([-0.2, 0.2, 1]), "a lone bar stands over its mixer's name"
    dots = [line for line in selective.lines if line.get_marker() == "."]
    assert [list(line.get_ydata()) for line in dots] == [pytest.approx([20, 30])]
    names = [text.get_text() for text in canvas.legends[0].get_texts()]
    assert sorted(names) == ["guessing", "mamba", "plain"]
