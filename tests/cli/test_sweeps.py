"""Sweeps: a run directory for each job, and what may not be swept."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hydra.errors import MissingConfigException

from mambabyte.config.explanations import explain
from mambabyte.errors import Interrupted, UserError


def test_a_sweep_runs_each_job_in_its_own_run_dir(cli):
    assert cli("train", "-m", "seed=1,2", "experiment=quickstart", "data.path=/some/where") == 0
    assert [job["seed"] for job in cli.jobs] == [1, 2]
    assert [job["run_dir"] for job in cli.jobs] == [
        f"runs/quickstart/data.path=_some_where,seed={seed}" for seed in (1, 2)
    ]
    assert cli("train", "experiment=quickstart,plain", "--multirun") == 0
    assert [job["run_dir"] for job in cli.jobs] == ["runs/quickstart", "runs/plain"]


def test_a_sweep_over_several_devices_is_refused(cli):
    assert cli("train", "-m", "seed=1,2", "trainer.devices=2") == 1
    assert cli.err.splitlines()[-1].startswith("mambabyte: -m runs its jobs in one process")
    assert "launcher=submitit_local" in cli.err  # one process each: training/distributed/test_slurm.py
    assert cli("train", "-m", "seed=1,2", "trainer.devices=auto") == 1
    assert cli.jobs == []
    assert cli("train", "trainer.devices=2") == 0


def test_a_launcher_whose_package_is_missing_is_named():
    fault = MissingConfigException("", "hydra/launcher/submitit_slurm", ["basic"])
    assert "pip install 'mambabyte[slurm]'" in str(explain(fault))


def test_a_sweeper_whose_package_is_missing_is_named():
    fault = MissingConfigException("", "hydra/sweeper/optuna", ["basic"])
    said = "sweeper=optuna needs packages that are missing: pip install 'mambabyte[sweep]'"
    assert str(explain(fault)) == said


SEARCH = ("train", "sweeper=optuna", "hydra.sweeper.n_trials=5", "hydra.sweeper.sampler.n_startup_trials=2")
RATES = "optimizer.learning_rate=tag(log, interval(1e-4, 1e-1))"


def test_a_search_is_seeded_and_its_jobs_answer_with_what_it_minimises(cli):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    cli.behave = lambda settings: abs(settings.optimizer["learning_rate"] - 1e-2)
    found = []
    for _ in range(2):
        assert cli(*SEARCH, RATES, "trainer.max_steps=3,5") == 0
        found.append([(job["optimizer"]["learning_rate"], job["run_dir"]) for job in cli.jobs])
    assert found[0] == found[1] and len(set(found[0])) == 5
    best = min(found[0], key=lambda each: abs(each[0] - 1e-2))
    assert f"mambabyte: the best of 5 jobs is {best[1]}, with {abs(best[0] - 1e-2):.4f} bits" in cli.err
    assert best[1].startswith("runs/default/") and "sweeper" not in best[1]
    assert Path("runs/default/optimization_results.yaml").exists()


def test_a_job_that_fails_is_the_worst_of_a_search_and_not_its_end(cli):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")

    def behave(settings):
        if settings.optimizer["learning_rate"] > 1e-3:
            raise UserError("training diverged")
        return 2.0

    cli.behave = behave
    assert cli(*SEARCH, RATES) == 1
    failed = sum(job["optimizer"]["learning_rate"] > 1e-3 for job in cli.jobs)
    assert len(cli.jobs) == 5 and 0 < failed < 5
    assert cli.err.count("mambabyte: training diverged") == failed
    assert f"the best of {5 - failed} jobs is" in cli.err
    cli.behave = lambda _: (_ for _ in ()).throw(UserError("there is no data"))
    assert cli(*SEARCH, RATES) == 1 and cli.err.count("there is no data") == 5


@pytest.mark.parametrize("setting", ["dry_run=true", "callbacks.evaluate_bytes=0"])
def test_a_search_without_anything_to_minimise_is_refused(cli, setting: str):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    assert setting in cli.complaint(*SEARCH, RATES, setting)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ([*SEARCH, "seed=1"], "a search has nothing to choose: give a setting several values"),
        ([*SEARCH, RATES, "hydra.sweeper.n_trials=0"], "hydra.sweeper.n_trials must be at least 1, not 0"),
        ([*SEARCH, RATES, "hydra.sweeper.n_jobs=-2"], "hydra.sweeper.n_jobs must be at least 1, not -2"),
        ([*SEARCH, "optimizer.learning_rate=interval(2,1)"], "must be smaller than or equal to the `high`"),
    ],
    ids=["nothing", "trials", "jobs", "range"],
)
def test_a_search_that_would_choose_nothing_is_refused(cli, typed: list[str], said: str):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    assert said in cli.complaint(*typed)
    assert cli.jobs == []


def test_a_long_sweep_still_names_a_folder_that_can_be_made(cli):
    path = "data.path=" + "x" * 300
    assert cli("train", "-m", "seed=1,2", path) == 0
    folders = [Path(job["run_dir"]) for job in cli.jobs]
    assert folders[0] != folders[1]
    for folder in folders:
        folder.mkdir(parents=True)


def test_the_other_ranks_of_a_job_are_started_with_that_jobs_own_arguments(cli, conf):
    # Lightning starts them with sys.argv as it is while the task runs.
    assert cli("train", "+experiment=quickstart", "--config-dir", str(conf)) == 0
    assert cli.argv == [["mambabyte", "train", "experiment=quickstart", f"--config-dir={conf}"]]
    assert cli("train", "-m", "seed=1,2") == 0
    jobs, commands = list(cli.jobs), list(cli.argv)
    assert sys.argv == ["mambabyte"]
    for job, command in zip(jobs, commands, strict=True):
        added_by_lightning = [
            "hydra.run.dir='.'",
            "hydra.job.name=train_ddp_process_1",
            "hydra.output_subdir=null",
        ]
        assert cli(*command[1:], *added_by_lightning) == 0
        assert cli.jobs == [job]


def test_a_sweep_goes_on_after_a_fault_but_not_after_a_signal(cli):
    def behave(cfg):
        if cfg.seed == 1:
            raise UserError("mend it")
        if cfg.seed == 3:
            raise Interrupted("saved")

    cli.behave = behave
    assert cli("train", "-m", "seed=1,2") == 1
    assert [job["seed"] for job in cli.jobs] == [1, 2]
    assert cli.err.splitlines() == [
        "mambabyte: job in runs/default/seed=1",
        "mambabyte: mend it",
        "mambabyte: job in runs/default/seed=2",
        "mambabyte: a job of the sweep failed, as said above",
    ]
    assert cli("train", "-m", "seed=3,4") == 75
    assert [job["seed"] for job in cli.jobs] == [3]


def test_a_mistake_of_the_program_in_a_sweep_keeps_its_traceback(cli):
    def behave(cfg):
        raise UserError("mend it") if cfg.seed == 1 else KeyError("mine")

    cli.behave = behave
    assert cli("train", "-m", "seed=1,2") == 1
    assert "mambabyte: mend it\n" in cli.err
    assert cli.err.endswith("KeyError: 'mine'\n")
    assert "Error executing job" not in cli.err


def test_a_long_sweeps_folder_begins_with_what_is_swept(cli):
    words = "ä" * 150  # 300 bytes
    assert cli("train", "-m", "seed=1,2", f"data.path='{words}'") == 0
    first, second = (Path(job["run_dir"]).name for job in cli.jobs)
    assert first != second
    for name in (first, second):
        assert name.startswith("data.path='" + "ä" * 80)
        assert len(name.encode()) <= 200


def test_a_command_that_is_killed_leaves_nothing_in_the_temporary_folder(cli, tmp_path, monkeypatch):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    seen = []
    cli.behave = lambda _: seen.append(list(temporary.iterdir()))
    assert cli("generate", "ckpt=a", "prompt=b") == 0
    assert seen == [[]]
    assert cli("generate", "ckpt=a", "prompt=b", "-m", "seed=1,2") == 0  # which Hydra records while it runs
    assert list(temporary.iterdir()) == []
