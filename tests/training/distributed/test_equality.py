"""Two ranks compute what one process computes, on the same windows, however a run is resumed."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from pathlib import Path
from signal import SIGTERM

import pytest
import torch

from mambabyte import checkpoints
from tests.training.distributed.conftest import STEPS
from tests.training.distributed.ranks import End

STRATEGIES = {
    "ddp": ["trainer=ddp"],
    "fsdp": ["trainer=fsdp"],
    "fsdp-sharded-checkpoints": [
        "trainer=fsdp",
        "trainer.sharded_checkpoints=true",
        "trainer.activation_checkpointing=true",
    ],
}


def rows(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def assert_same_run(run_dir: Path, expected_dir: Path) -> None:
    """Weights and optimizer of two runs agree.

    The ranks add the same four gradients in another order, so each step differs by rounding: 6e-8 of a
    gradient, which Adam's quotient turns into the same share of the learning rate, 1e-2. Over 24 steps this
    grows but stays below 1e-5; the weights themselves move by 0.1.
    """
    found, expected = checkpoints.read(run_dir), checkpoints.read(expected_dir)
    assert found.step == expected.step == STEPS
    assert found.content.keys() == expected.content.keys()
    assert found.state_dict.keys() == expected.state_dict.keys()
    for name, tensor in expected.state_dict.items():
        torch.testing.assert_close(found.state_dict[name], tensor, atol=1e-5, rtol=0, msg=name)
    ours, theirs = found.content["optimizer_states"][0], expected.content["optimizer_states"][0]
    assert ours["param_groups"] == theirs["param_groups"]
    for number, state in theirs["state"].items():
        for name, value in state.items():
            torch.testing.assert_close(ours["state"][number][name], value, atol=1e-5, rtol=1e-4)


def assert_same_curve(run_dir: Path, expected_dir: Path) -> None:
    for row, expected_row in zip(rows(run_dir), rows(expected_dir), strict=True):
        for name in ("step", "bytes", "bits_per_byte", "validation_bits_per_byte", "gradient_norm"):
            if expected_row[name]:
                assert float(row[name]) == pytest.approx(float(expected_row[name]), abs=1e-4), name
            else:
                assert row[name] == ""


def assert_each_window_once(ends: list[End], alone: End) -> None:
    """The ranks of all resumed runs together trained on the windows of the one process, step by step."""
    seen = sorted(entry for end in ends for rank in end.windows for entry in rank)
    assert seen == sorted(alone.windows[0])
    for end in ends:
        assert len({len(rank) for rank in end.windows}) == 1  # and shared them evenly


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_ranks_equal_one_process(
    strategy: str, train: Callable[..., End], alone: tuple[Path, End], tmp_path: Path
) -> None:
    end = train(2, tmp_path / "run", *STRATEGIES[strategy])
    assert end.codes == [0, 0], end.err
    assert_each_window_once([end], alone[1])
    assert_same_run(tmp_path / "run", alone[0])
    assert_same_curve(tmp_path / "run", alone[0])
    samples = [(folder / "samples.txt").read_text() for folder in (alone[0], tmp_path / "run")]
    assert samples[0] == samples[1]
    newest = checkpoints.resolve(tmp_path / "run")
    if strategy == "fsdp-sharded-checkpoints":
        assert sorted(os.listdir(newest)) == ["rank_00000.ckpt", "rank_00001.ckpt"]
    else:
        assert newest.is_file()


def test_two_ranks_equal_one_process_bit_for_bit_if_sums_keep_their_order(
    train: Callable[..., End], tmp_path: Path
) -> None:
    # two micro-batches a step: their halves are added, by accumulation or between the ranks
    batch = ["trainer.global_batch_bytes=128"]
    assert train(1, tmp_path / "one", *batch).codes == [0]
    assert train(2, tmp_path / "two", *batch, "trainer=ddp").codes == [0, 0]
    one, two = (checkpoints.read(tmp_path / name).state_dict for name in ("one", "two"))
    for name, tensor in one.items():
        assert torch.equal(tensor, two[name]), name


def test_a_run_resumed_with_other_ranks_and_strategies_ends_the_same(
    train: Callable[..., End], alone: tuple[Path, End], tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    ends = [
        train(1, run_dir, step=2, number=SIGTERM),
        # the signal comes to one rank, and both stop at the same step
        train(2, run_dir, *STRATEGIES["ddp"], step=5, number=SIGTERM),
        train(2, run_dir, *STRATEGIES["fsdp-sharded-checkpoints"], step=13, number=SIGTERM),
        train(1, run_dir),
    ]
    # each signal saved once, and the last process its last step; two are kept, and last.ckpt
    assert len(os.listdir(run_dir / "checkpoints")) == 3
    assert [end.codes for end in ends] == [[75], [75, 0], [75, 0], [0]], [end.err for end in ends]
    assert_each_window_once(ends, alone[1])
    assert_same_run(run_dir, alone[0])


def test_the_clock_of_rank_zero_ends_the_run_of_both(train: Callable[..., End], tmp_path: Path) -> None:
    settings = ["trainer=ddp", "trainer.max_steps=null", "budget.training_seconds=20"]
    settings.append("callbacks.extra=[{_target_: tests.training.distributed.clock.OwnClock}]")
    end = train(2, tmp_path / "run", *settings)
    assert end.codes == [0, 0], end.err
    found = checkpoints.read(tmp_path / "run")
    assert found.step == found.config["trainer"]["max_steps"] == 20
    assert found.config["optimizer"]["decay_from"] == 14
    assert len(end.windows[0]) == len(end.windows[1]) == 2 * 20
    stopped = train(2, tmp_path / "parts", *settings, step=16, number=SIGTERM)
    assert stopped.codes == [75, 0], stopped.err
    assert train(2, tmp_path / "parts", *settings).codes == [0, 0]
    parts = checkpoints.read(tmp_path / "parts")
    for name, tensor in found.state_dict.items():
        assert torch.equal(tensor, parts.state_dict[name]), name


def test_bf16_is_the_same_under_fsdp(train: Callable[..., End], tmp_path: Path) -> None:
    curves = []
    for name, ranks, overrides in (("one", 1, []), ("two", 2, ["trainer=fsdp"])):
        end = train(
            ranks,
            tmp_path / name,
            "trainer.precision=bf16",
            "trainer.max_steps=4",
            "callbacks.validate_every=2",
            *overrides,
        )
        assert end.codes == [0] * ranks, end.err
        assert ("validation is computed in bf16" in end.err[0]) is (ranks == 2)
        validated = [row["validation_bits_per_byte"] for row in rows(tmp_path / name)]
        curves.append([float(bits) for bits in validated])
        curves.append([float(row["bits_per_byte"]) for row in rows(tmp_path / name)])
    # the weights stay fp32 and are rounded where they are used, as without FSDP; sums in another order may
    # round one differently, by 2**-9 of itself
    one, two = curves[:2], curves[2:]
    for ours, theirs in zip(two, one, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-2)


def test_ranks_whose_windows_hold_other_numbers_of_documents_gather_weights_together(
    train: Callable[..., End], tmp_path: Path
) -> None:
    # a Transformer runs the documents of a window each by itself, in as many calls as they have sizes
    few = ["model=transformer", "trainer.max_steps=3", "callbacks.sample_every=0"]
    assert train(1, tmp_path / "one", *few).codes == [0]
    end = train(2, tmp_path / "two", *few, "trainer=fsdp")
    assert end.codes == [0, 0], end.err
    one, two = (checkpoints.read(tmp_path / name).state_dict for name in ("one", "two"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=1e-5, rtol=0, msg=name)


def test_two_ranks_train_adapters_as_one_process_does(
    train: Callable[..., End], alone: tuple[Path, End], tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    lora = [f"ckpt={alone[0]}", "lora=default", "trainer.max_steps=6"]
    end = train(1, tmp_path / "one", *lora)
    assert end.codes == [0], end.err
    end = train(2, tmp_path / "two", *lora, *STRATEGIES["fsdp-sharded-checkpoints"])
    assert end.codes == [0, 0], end.err
    one, two = (checkpoints.read(tmp_path / name) for name in ("one", "two"))
    assert one.state_dict.keys() == two.state_dict.keys() and two.lora is not None
    before = checkpoints.read(alone[0]).state_dict
    for name, tensor in one.state_dict.items():
        torch.testing.assert_close(two.state_dict[name], tensor, atol=1e-5, rtol=0, msg=name)
        assert ".lora_" in name or torch.equal(tensor, before[name.replace(".base_layer.", ".")]), name
    samples = [(tmp_path / name / "samples.txt").read_text() for name in ("one", "two")]
    assert samples[0] == samples[1]
