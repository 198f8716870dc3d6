"""benchmarks/scaling.py and benchmarks/synthetic_tasks.py: the layers compute what they say, and the pages in
docs are those of the CSVs beside them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mambabyte.training.settings import TrainSettings

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs" / "benchmarks"


@pytest.mark.parametrize("name", ["attention", "LSTM", "convolution", "S4D", "selective scan"])
def test_a_layer_takes_byte_after_byte_as_it_reads_a_sequence(name: str, load) -> None:
    torch.manual_seed(0)
    length = 13
    layer = load("scaling_layers").LAYERS[name](64, length)
    x = torch.randn(1, length, 64)
    with torch.no_grad():
        whole, state = layer(x), zeros(layer.state_after(length if name == "convolution" else length - 1))
        for position in range(length):
            now = state
            if name == "attention":  # room for so many keys and values
                now = tuple(part[:, :, : position + 1] for part in state)
            if name == "convolution":  # the last inputs
                now = state.roll(-1, dims=-1)
            y, now = layer.step(x[:, position], now)
            state = state if name == "attention" else now
            torch.testing.assert_close(y, whole[:, position], rtol=1e-4, atol=1e-5)  # fp32, FFT


def zeros(state):
    return torch.zeros_like(state) if isinstance(state, torch.Tensor) else tuple(map(zeros, state))


def test_the_looped_scan_is_the_scan(load) -> None:
    layers, outputs = load("scaling_layers").LAYERS, []
    x = torch.randn(1, 21, 64, requires_grad=True)
    for name in ("selective scan", "selective scan, looped"):
        torch.manual_seed(0)
        y = layers[name](64, 21)(x)
        outputs.append((y, torch.autograd.grad(y.square().sum(), x)[0]))
    for one, other in zip(*outputs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)  # fp32


def rows(load) -> list[dict]:
    layers = list(load("scaling_layers").LAYERS)
    common = {"width": 64, "rounds": 3, "machine": "a machine", "training_fastest": 1.0}
    common |= {"training_slowest": 1.0, "step_seconds": 1e-4, "training_bytes": 2.0**20, "state_bytes": 64.0}
    return [
        {
            "layer": layer,
            "length": n,
            "training_seconds": n**2 / 2**10 if layer == "attention" else n,
            **common,
        }
        for n in (512, 1024, 2048)
        for layer in layers
        if not (layer.endswith("looped") and n > 512)
    ]


def test_the_crossing_is_where_two_lines_meet(load, tmp_path: Path) -> None:
    pages = load("scaling_page")
    found = rows(load)
    assert pages.crossing(found) == pytest.approx(1024)
    page = pages.page(found)
    assert "From 1,024 bytes on, the selective scan trains faster than attention" in page
    assert "| Transformer | not compressed: every key and value | 64 | 4,096,000 (4.0) | 100 (1.0) |" in page
    assert "| 1,024 | 1,024,000 |" in page and page.count(" - |") == 6
    assert pages.crossing([row for row in found if row["length"] < 1024]) is None
    pages.plot(found, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    written = load("scaling")
    written.write(found, tmp_path / "scaling.csv")
    assert written.read(tmp_path / "scaling.csv") == [
        {key: row[key] for key in written.COLUMNS} for row in found
    ]


@pytest.mark.parametrize(
    ("ratios", "crossing", "sentence"),
    [
        ((0.5, 2, 0.5, 2), 1024 * 2**0.5, "From 1,448 bytes on"),
        ((0.5, 2, 2, 0.5), None, "At 2,048 bytes, the most that both were measured at, attention trains"),
        ((2, 0.5, 0.5, 0.5), None, "At 2,048 bytes, the most that both were measured at, attention trains"),
        ((2, 2, 2, 2), None, "At every length that both were measured at, the selective scan trains faster"),
    ],
    ids=["twice", "back", "once", "never"],
)
def test_the_scan_is_faster_from_the_crossing_on(ratios, crossing, sentence, load) -> None:
    """Ratios of attention's time to the scan's at 256, 512, 1,024 and 2,048 bytes."""
    found = [
        {"layer": layer, "length": 256 * 2**n, "training_seconds": seconds}
        for n, ratio in enumerate(ratios)
        for layer, seconds in (("attention", ratio), ("selective scan", 1.0))
    ]
    pages = load("scaling_page")
    assert pages.crossing(found) == (None if crossing is None else pytest.approx(crossing))
    assert sentence in pages._crossing_in_words(found)


def test_a_point_of_the_scaling_is_measured(load) -> None:
    found = load("scaling").measure_point("selective scan", 64, 16)
    assert found["state_bytes"] == 16 * 16 * 4
    assert min(found["step_seconds"], found["training_seconds"]) > 0
    assert load("scaling").too_much({**found, "training_seconds": 61.0}, 60.0)


def test_the_pages_in_docs_are_those_of_the_figures_there(load) -> None:
    scaling, tasks = load("scaling"), load("synthetic_tasks")
    assert (DOCS / "scaling.md").read_text() == load("scaling_page").page(scaling.read(DOCS / "scaling.csv"))
    found = [tasks.read(DOCS / name) for name in (tasks.RESULTS, tasks.LENGTHS)]
    assert (DOCS / "synthetic_tasks.md").read_text() == load("synthetic_tasks_page").page(*found)


def result(task: str, mixer: str, accuracy: float, seed: int = 0) -> dict:
    figures = {
        "accuracy": accuracy,
        "sequence_accuracy": accuracy**2,
        "chance": 0.07,
        "parameters": 1000.0,
        "steps": 9.0,
        "training_seconds": 60.0,
    }
    kind = {"mixer": mixer, "block": "plain", "mlp": "none", "seed": float(seed)}
    return {"task": task, **kind, **figures, "machine": "a machine"}


def test_the_page_of_the_tasks_has_means_and_dashes(load, tmp_path: Path) -> None:
    results = [
        result("copying", "s4", 1.0),
        result("selective_copying", "s4", 0.2),
        result("selective_copying", "s4", 0.3, seed=1),
        result("selective_copying", "s6", 0.99),
        result("induction_heads", "s6", 1.0),
    ]
    lengths = [{**results[-1], "length": float(n), "sequences": 64.0} for n in (64, 128)]
    pages = load("synthetic_tasks_page")
    page = pages.page(results, lengths)
    assert "| s4 | plain | 1,000 | 100.0 | 100.0 | 25.0 | 6.5 | 18.3 |" in page
    assert "| s6 | plain | 1,000 | - | - | 99.0 | 98.0 | 97.0 |" in page
    assert "| s6 | plain | 100.0 | 100.0 |" in page and "5 runs, seeds 0, 1; 5 minutes" in page
    pages.draw(results, lengths, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "synthetic_tasks.png",
        "synthetic_tasks_lengths.png",
    }


def test_the_commands_are_those_of_experiments_and_mixers_that_exist(load, tmp_path: Path) -> None:
    runs = list(load("synthetic_tasks").all_runs([0, 1], tmp_path))
    commands = [" ".join(run.command) for run in runs]
    assert len(commands) == len(set(commands)) == 2 * (12 + 12 + 7)
    for run in runs:
        assert (ROOT / "conf" / "mixer" / f"{run.mixer}.yaml").exists()
        assert f"experiment={run.task}_small mixer={run.mixer} " in " ".join(run.command)
    TrainSettings.compose(*runs[0].command[2:])


def test_a_run_of_the_tasks_becomes_rows(load, tmp_path: Path) -> None:
    tasks = load("synthetic_tasks")
    run = tasks.Run("copying", "s4d", "plain", "none", 0, tmp_path)
    toy = ["trainer.max_steps=2", "optimizer.warmup_steps=1", "data.validation_bytes=720"]
    row, by_length = tasks.finish(run, toy)
    assert row.keys() == set(tasks.RESULT_COLUMNS) and by_length == []
    assert (row["task"], row["mixer"], row["steps"], row["seed"]) == ("copying", "s4d", 2, 0)
    assert row["command"].endswith(" ".join([f"run_dir={run.folder}", *toy]))
    tasks.write_rows([row], tasks.RESULT_COLUMNS, tmp_path / "a.csv")
    assert tasks.read(tmp_path / "a.csv")[0]["accuracy"] == row["accuracy"]
