"""How many processes a run has, by the environment that the launchers set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mambabyte.cli import main as cli
from mambabyte.errors import UserError
from mambabyte.training.distributed.launching import is_main_process, lost_rank, resolve_devices
from mambabyte.training.settings import TrainerSettings
from tests.training.distributed.ranks import End, environment

SLURM = {"SLURM_NTASKS": "6", "SLURM_NNODES": "3", "SLURM_NTASKS_PER_NODE": "2", "SLURM_PROCID": "4"}
LAUNCHERS = ("TORCHELASTIC_RUN_ID", "RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", *SLURM)


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*LAUNCHERS, "SLURM_JOB_NAME"):
        monkeypatch.delenv(name, raising=False)


def config(**settings) -> TrainerSettings:
    needed = {"max_steps": 1, "global_batch_bytes": 64, "micro_batch_size": 1, "accelerator": "cpu"}
    return TrainerSettings(**needed, **settings)


def count(**settings) -> tuple[object, object]:
    found = resolve_devices(config(**settings))
    return found.devices, found.num_nodes


def test_without_a_launcher_the_configuration_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert count() == (1, 1)
    assert count(devices="auto", num_nodes="auto") == (1, 1)
    assert count(devices=4, num_nodes=2) == (4, 2)
    assert resolve_devices(config(devices=4, num_nodes=2)).world_size == 8
    assert is_main_process()
    monkeypatch.setenv("LOCAL_RANK", "1")  # as in a process that Lightning starts
    assert not is_main_process()
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("NODE_RANK", "1")
    assert not is_main_process()


def test_torchrun_and_srun_set_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    assert count(devices="auto", num_nodes="auto") == (2, 3)
    assert not is_main_process()
    with pytest.raises(UserError, match=r"^srun has started 2 processes on each of 3 nodes, .*trainer=ddp"):
        count()
    # a torchrun in a SLURM job
    for name, value in {**environment(rank=0, ranks=8, port=1), "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    assert count(devices="auto", num_nodes="auto") == (4, 2)
    assert count(devices=4, num_nodes=2) == (4, 2)
    assert is_main_process()
    with pytest.raises(UserError, match=r"^torchrun has started 4"):
        count(devices=8)


def test_ranks_that_see_different_checkpoints_do_not_train_on(
    train: Callable[..., End], tmp_path: Path
) -> None:
    # as with a separate folder on each node
    assert train(1, tmp_path / "0", "trainer.max_steps=2").codes == [0]
    end = train(2, tmp_path, "trainer=ddp", "run_dir=" + str(tmp_path / "${oc.env:LOCAL_RANK,0}"))
    assert end.codes == [1, 1]
    assert "from different checkpoints (step 0 and step 2)" in end.err[0]


def test_the_process_groups_error_about_a_lost_rank_is_a_sentence() -> None:
    lost = lost_rank(RuntimeError("[gloo/transport/tcp/pair.cc:5] Connection closed by peer [::1]:5"))
    assert str(lost).startswith("another rank of this run has gone; all processes")
    refused = lost_rank(torch.distributed.DistNetworkError("the port is taken\nmore"))
    assert "gone (the port is taken); all" in str(refused)
    assert lost_rank(RuntimeError("shapes do not match")) is None


def test_outside_slurm_trainer_ddp_slurm_names_what_is_missing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["train", "experiment=tiny", "trainer=ddp_slurm"]) == 1
    assert (
        "trainer.devices comes from the environment variable SLURM_NTASKS_PER_NODE" in capsys.readouterr().err
    )
