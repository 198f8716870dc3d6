"""What the ranks say to each other in a step, and in which precision."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from signal import SIGTERM

import pytest
import torch

from mambabyte import checkpoints
from tests.training.distributed.ranks import End

WATCHING = "tests.training.distributed.watching"
BF16 = ["trainer=fsdp", "trainer.precision=bf16", "trainer.max_steps=4"]
QUIET = ["callbacks.log_every=100", "callbacks.validate_every=0", "callbacks.sample_every=0"]


def extra(name: str, **arguments: object) -> str:
    given = "".join(f", {key}: {value}" for key, value in arguments.items())
    return f"callbacks.extra=[{{_target_: {WATCHING}.{name}{given}}}]"


def assert_same_bits(run_dir: Path, expected_dir: Path) -> None:
    found, expected = checkpoints.read(run_dir), checkpoints.read(expected_dir)
    assert found.step == expected.step
    for name, tensor in expected.state_dict.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(found.state_dict[name], tensor), name
    ours, theirs = (
        found.content["optimizer_states"][0]["state"],
        expected.content["optimizer_states"][0]["state"],
    )
    for number, state in theirs.items():
        for name, value in state.items():
            assert torch.equal(ours[number][name], value), (number, name)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_step_has_no_barrier_and_the_host_reads_nothing(
    strategy: str, train: Callable[..., End], tmp_path: Path
) -> None:
    found = tmp_path / "found.json"
    watch = extra("InSteps", path=found, first=2)
    end = train(2, tmp_path / "run", f"trainer={strategy}", "trainer.max_steps=6", *QUIET, watch)
    assert end.codes == [0, 0], end.err
    seen = json.loads(found.read_text())
    counts = seen["counts"]
    if strategy == "ddp":
        # two steps, each with the gradients (one bucket), the sums of the step and the ranks' wish to stop
        assert counts == {"c10d::allreduce_": 2 * 3}
        # in the buckets from the first micro-batch on, and nowhere else
        assert seen["gradients"] == [seen["parameters"]]
    else:
        assert counts
        assert all(
            "all_gather" in name or "allgather" in name or "reduce" in name or "wait" in name
            for name in counts
        )


def test_fsdp_gathers_matrices_in_bf16_and_changes_no_bit(train: Callable[..., End], tmp_path: Path) -> None:
    types = tmp_path / "types.json"
    ends = [
        train(2, tmp_path / "bf16", *BF16, extra("GatheredTypes", path=types)),
        train(2, tmp_path / "fp32", *BF16, extra("InFp32")),
        train(2, tmp_path / "parts", *BF16, step=1, number=SIGTERM),
        train(2, tmp_path / "parts", *BF16),
    ]
    assert [end.codes for end in ends] == [[0, 0], [0, 0], [75, 0], [0, 0]], [end.err for end in ends]
    found = json.loads(types.read_text())
    rounded = {name for name, dtype in found.items() if dtype == "torch.bfloat16"}
    assert rounded == {"mixer.in_proj.weight", "mixer.out_proj.weight"}
    assert {found[name] for name in found.keys() - rounded} == {"torch.float32"}
    assert {"mixer.A_log", "mixer.D", "mixer.dt_proj.bias", "norm.weight"} < found.keys()
    assert_same_bits(tmp_path / "bf16", tmp_path / "fp32")
    assert_same_bits(tmp_path / "parts", tmp_path / "bf16")


def test_another_model_is_gathered_in_bf16_too(train: Callable[..., End], tmp_path: Path) -> None:
    small = ["model=gated_s4d", "model.d_model=32", "model.n_layer=2", "trainer.max_steps=2", *QUIET]
    small += ["trainer.precision=bf16", "callbacks.evaluate_bytes=0", "trainer.activation_checkpointing=true"]
    for strategy in ("ddp", "fsdp"):
        end = train(2, tmp_path / strategy, *small, f"trainer={strategy}")
        assert end.codes == [0, 0], end.err
    ddp, fsdp = (checkpoints.read(tmp_path / name).state_dict for name in ("ddp", "fsdp"))
    for name, tensor in ddp.items():
        # sums over the ranks in another order, which Adam turns into a part of the learning rate, 1e-2
        torch.testing.assert_close(fsdp[name], tensor, atol=1e-3, rtol=0, msg=name)
