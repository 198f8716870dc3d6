"""`mambabyte train` from the composed configuration to the files of the run."""

import csv
import errno
import json
import os
import signal
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch
import yaml

import mambabyte
from mambabyte import checkpoints
from mambabyte.commands import train
from mambabyte.errors import Interrupted, UserError
from mambabyte.runs.run_directory import lock_run_directory
from mambabyte.training.module import ByteLMModule
from mambabyte.training.planning.peak_flops import PeakFlops
from tests.conftest import TINY


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return checkpoints.read(run_dir).state_dict


def assert_same_weights(one: Path, other: Path) -> None:
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def rows(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch):
    """at_step(7, action) runs the action once, in the middle of the accumulation of optimizer step 8."""

    def install(step: int, action) -> None:
        original, done = ByteLMModule.training_step, []

        def training_step(self, batch, batch_index):
            if self.global_step == step and not done:
                done.append(True)
                action()
            return original(self, batch, batch_index)

        monkeypatch.setattr(ByteLMModule, "training_step", training_step)

    return install


def send(*signals: int):
    return lambda: [os.kill(os.getpid(), number) for number in signals]


def test_a_run_leaves_its_files_and_learns(finished: Path) -> None:
    assert sorted(path.name for path in (finished / "checkpoints").iterdir()) == [
        "last.ckpt",
        "step_00000010.ckpt",
        "step_00000012.ckpt",
    ]
    assert (finished / "checkpoints" / "last.ckpt").resolve().name == "step_00000012.ckpt"
    assert yaml.safe_load((finished / "config.yaml").read_text())["context_length"] == 32
    assert (finished / "samples.txt").read_text().count("--- step") == 2
    assert (finished / "loss_curve.png").read_bytes().startswith(b"\x89PNG")

    table = rows(finished)
    assert [int(row["step"]) for row in table] == [2, 4, 6, 8, 10, 12]
    assert [int(row["bytes"]) for row in table] == [512, 1024, 1536, 2048, 2560, 3072]
    assert [bool(row["validation_bits_per_byte"]) for row in table] == [
        False,
        False,
        True,
        False,
        False,
        True,
    ]
    assert float(table[0]["bits_per_byte"]) > 6
    assert float(table[-1]["bits_per_byte"]) < 5
    assert all(float(row["gradient_norm"]) > 0 and float(row["bytes_per_second"]) > 0 for row in table)
    for row in table:
        assert (row["skipped_steps"], row["clipped_share"] in ("0.0", "0.5", "1.0")) == ("0", True)
        # Mamba's initialisation, A from -1 to -8, step sizes around 0.001 to 0.1: 12 steps move them little
        ranges = {"delta": ((0.01, 0.06), (1e-4, 3e-3), (0.06, 0.3)), "A": ((-5, -4), (-9, -7), (-1.2, -0.8))}
        for name, bounds in ranges.items():
            for part, (low, high) in zip(("mean", "minimum", "maximum"), bounds, strict=True):
                assert low < float(row[f"{name}_{part}"]) < high, (name, part)
    seconds = [float(row["seconds"]) for row in table]
    assert seconds == sorted(seconds)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_a_whole_step_and_the_same_command_ends_with_the_same_bits(
    number: int, start, finished: Path, at_step, tmp_path: Path
) -> None:
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    at_step(7, send(number))
    with pytest.raises(Interrupted, match="step 8"):
        start("stopped")
    run_dir = tmp_path / "runs" / "stopped"
    assert checkpoints.read(run_dir).step == 8
    assert not (run_dir / "summary.json").exists()
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers

    start("stopped")
    assert_same_weights(run_dir, finished)
    assert [int(row["step"]) for row in rows(run_dir)] == [2, 4, 6, 8, 10, 12]
    ours, theirs = (
        json.loads((path / "summary.json").read_text())["validation"] for path in (run_dir, finished)
    )
    assert ours["nats"] == theirs["nats"]
    assert ours["weights_fingerprint"] == theirs["weights_fingerprint"]


def test_two_stops_and_another_accumulation_see_the_same_bytes(
    start, at_step, monkeypatch, tmp_path: Path
) -> None:
    seen: list[tuple[int, bytes]] = []  # by which optimizer step, which window
    original = ByteLMModule.training_step

    def training_step(self, batch, batch_index):
        seen.extend((self.global_step, row.numpy().tobytes()) for row in batch["bytes"])
        return original(self, batch, batch_index)

    monkeypatch.setattr(ByteLMModule, "training_step", training_step)
    run_dir = start("undisturbed")
    whole = seen.copy()
    seen.clear()
    for step, micro_batch_size in ((3, 8), (8, 4)):
        at_step(step, send(signal.SIGTERM))
        with pytest.raises(Interrupted):
            start("elastic", f"trainer.micro_batch_size={micro_batch_size}")
    elastic = start("elastic", "trainer.micro_batch_size=1", "data.workers=1")
    assert len(seen) == 12 * 8
    assert seen == whole
    # the same sums in another order, which Adam turns into differences of this size
    figures = [json.loads((path / "summary.json").read_text()) for path in (run_dir, elastic)]
    ours, theirs = (figure["validation"]["bits_per_byte"] for figure in figures)
    assert ours == pytest.approx(theirs, abs=0.01)


def test_a_killed_run_resumes_from_its_checkpoint(start, finished: Path, at_step, tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def die() -> None:
        raise Killed

    at_step(8, die)
    with pytest.raises(Killed):
        start("killed")
    run_dir = tmp_path / "runs" / "killed"
    assert [int(row["step"]) for row in rows(run_dir)] == [2, 4, 6, 8]
    half_written = run_dir / "checkpoints" / "step_00000010.ckpt.temporary"
    half_written.write_bytes(b"half")
    start("killed")
    assert not half_written.exists()
    assert_same_weights(run_dir, finished)
    assert [int(row["step"]) for row in rows(run_dir)] == [2, 4, 6, 8, 10, 12]  # 6 and 8 were taken twice


def test_a_utilization_above_one_is_not_written(start, monkeypatch) -> None:
    tiny = PeakFlops(1.0, "measured matrix product")
    monkeypatch.setattr("mambabyte.training.callbacks.metrics.peak_flops", lambda *_: tiny)
    assert {row["model_flops_utilization"] for row in rows(start("impossible"))} == {""}


def test_the_first_step_is_shown_without_a_row_of_its_own(start, capsys) -> None:
    run_dir = start("first", "callbacks.log_every=6", "callbacks.validate_every=0")
    shown = [line.split(" | ") for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
    assert [parts[0] for parts in shown] == ["step 0/12", "step 1/12", "step 12/12"]
    assert 7 < float(shown[1][1].removesuffix(" bpb")) < 9
    assert [int(row["step"]) for row in rows(run_dir)] == [6, 12]
    again = start("each", "callbacks.log_every=1", "callbacks.validate_every=0")
    bits = [float(row["bits_per_byte"]) for row in rows(again)]
    assert float(rows(run_dir)[0]["bits_per_byte"]) == pytest.approx(sum(bits[:6]) / 6, abs=0.02), "all six"


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("model.d_model=16", "model.d_model"),
        ("context_length=64", "context_length"),
        ("data.windows=contiguous", "data.windows"),
        ("trainer.global_batch_bytes=512", "trainer.global_batch_bytes"),
        ("seed=7", r"seed \(0 there, 7 now\)"),
        ("optimizer.learning_rate=1e-3", r"optimizer\.learning_rate \(0\.01 there, 0\.001 now\)"),
        ("optimizer.warmup_steps=3", r"optimizer\.warmup_steps \(2 there, 3 now\)"),
        ("optimizer.final_learning_rate_ratio=0.5", "optimizer.final_learning_rate_ratio"),
        ("optimizer.betas=[0.8,0.95]", r"optimizer\.betas \(\[0\.9, 0\.95\] there, \[0\.8, 0\.95\] now\)"),
        ("trainer.precision=bf16", r"trainer\.precision \(fp32 there, bf16 now\)"),
        ("trainer.gradient_clip=null", r"trainer\.gradient_clip \(1\.0 there, null now\)"),
        ("data.validation_fraction=0.4", "data.source.validation_fraction"),
    ],
)
def test_another_configuration_in_the_same_run_directory_is_refused(
    override: str, key: str, start, finished: Path
) -> None:
    config = (finished / "config.yaml").read_bytes()
    assert (finished / "summary.json").exists()
    with pytest.raises(UserError, match=rf"{key}.*name="):
        start("taken", f"run_dir={finished}", override)
    assert (finished / "config.yaml").read_bytes() == config


def test_a_diverging_run_stops_at_the_step_and_keeps_its_checkpoint(
    start, monkeypatch, tmp_path: Path
) -> None:
    original = ByteLMModule.training_step

    def training_step(self, batch, batch_index):
        loss = original(self, batch, batch_index)
        # only the gradient is bad, as when it overflows: the loss follows a step later
        return loss * float("nan") if self.global_step == 6 else loss

    monkeypatch.setattr(ByteLMModule, "training_step", training_step)
    with pytest.raises(UserError, match="at step 7 "):
        start("diverged")
    run_dir = tmp_path / "runs" / "diverged"
    assert checkpoints.read(run_dir).step == 5
    assert all(tensor.isfinite().all() for tensor in weights(run_dir).values())

    with pytest.raises(UserError, match=r"optimizer\.learning_rate \(0\.01 there, 0\.001 now\)"):
        start("diverged", "optimizer.learning_rate=1e-3")
    start("diverged", "trainer.on_spike=skip")
    assert checkpoints.read(run_dir).step == 12


def test_what_changed_on_purpose_is_said_and_recorded(start, at_step, capsys, tmp_path: Path) -> None:
    at_step(5, send(signal.SIGTERM))
    with pytest.raises(Interrupted):
        start("longer")
    capsys.readouterr()
    start("longer", "trainer.max_steps=30", "trainer.micro_batch_size=4", "callbacks.log_every=3")
    (said,) = (line for line in capsys.readouterr().err.splitlines() if "changed since" in line)
    assert said == (
        "mambabyte: changed since then: callbacks.log_every (2 then, 3 now), trainer.max_steps (12 then, 30 "
        "now), trainer.micro_batch_size (2 then, 4 now); so the learning rate goes from 0.0081 at step 6 to "
        "0.0096 at step 7"
    )
    run_dir = tmp_path / "runs" / "longer"
    learning_rates = {int(row["step"]): float(row["learning_rate"]) for row in rows(run_dir)}
    assert learning_rates[4] > learning_rates[6] < learning_rates[9]
    start("longer", "trainer.max_steps=30", "trainer.micro_batch_size=4", "callbacks.log_every=3")
    assert "changed since" not in capsys.readouterr().err, "nothing is trained"

    first, second = json.loads((run_dir / "sittings.json").read_text())
    assert (first["step"], first["changed"], second["step"]) == (0, {}, 6)
    assert second["changed"]["trainer.max_steps"] == [12, 30]
    for sitting in (first, second):
        assert (sitting["mambabyte"], sitting["torch"]) == (mambabyte.__version__, torch.__version__)
        assert sitting["command"] and sitting["started"].endswith("+00:00")


def test_a_full_disk_is_one_sentence_and_earlier_checkpoints_stay(start, monkeypatch, tmp_path: Path) -> None:
    real, calls = torch.save, []

    def full(checkpoint, file, *args, **kwargs):
        calls.append(checkpoint)
        if len(calls) == 2:
            file.write(b"some of it")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(checkpoint, file, *args, **kwargs)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match="No space left"):
        start("full")
    folder = tmp_path / "runs" / "full" / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["last.ckpt", "step_00000005.ckpt"]


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("trainer.global_batch_bytes=300", r"nearest that are: 288 or 320"),
        ("trainer.micro_batch_size=3", r"nearest that are: 192 or 288"),
        ("trainer.max_steps=abc", r"trainer\.max_steps must be an integer"),
        ("trainer.precision=fp8", r"fp32, bf16"),
        ("logger=mlflow", r"csv, tensorboard, wandb"),
        ("trainer.accelerator=gpu", r"trainer\.accelerator=gpu"),
        ("model.d_model=large", r"d_model"),
        ("data.windows=shuffled", r"windows"),
        ("optimizer.betas=[0.9]", r"betas"),
    ],
)
def test_wrong_settings_are_told_in_a_sentence(override: str, sentence: str, start) -> None:
    if override == "trainer.accelerator=gpu" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match=sentence) as caught:
        start("wrong", override)
    assert "\n" not in str(caught.value)


def test_two_processes_do_not_train_in_one_directory(start, tmp_path: Path) -> None:
    run_dir = tmp_path / "runs" / "busy"
    with lock_run_directory(run_dir, {}), pytest.raises(UserError, match="another process"):
        start("busy")
    start("busy", "trainer.max_steps=2")


def test_data_that_is_not_there_leaves_no_run_directory(configure, tmp_path: Path) -> None:
    settings = configure(
        "train", *TINY, "data=stdlib", f"run_dir={tmp_path}/run", f"data.folder={tmp_path}/p"
    )
    settings.data.source = {"_target_": "mambabyte.data.FilesSource", "path": f"{tmp_path}/nowhere"}
    with pytest.raises(UserError, match="nowhere"):
        train.run(settings)
    with pytest.raises(UserError, match="nowhere"):
        mambabyte.train(settings)
    assert not (tmp_path / "run").exists()


def test_a_run_directory_that_cannot_be_made_is_a_sentence(start, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("in the way")
    with pytest.raises(UserError, match="run_dir="):
        start("inside")


def test_a_stream_stopped_twice_ends_with_the_same_bits(start, at_step, tmp_path: Path) -> None:
    texts = [f"book {number}: " + "happy families are all alike. " * (number + 3) for number in range(7)]
    for split in ("train", "validation"):
        table = pyarrow.table({"text": texts})
        pyarrow.parquet.write_table(table, tmp_path / f"{split}-00000-of-00001.parquet")
    stream = ["data=hf", f"data.path={tmp_path}", "data.streaming=true", "data.windows=contiguous"]
    whole = start("whole", *stream)
    for step in (4, 9):
        at_step(step, send(signal.SIGTERM))
        with pytest.raises(Interrupted):
            start("parts", *stream)
    assert_same_weights(start("parts", *stream), whole)


def test_bf16_trains(start) -> None:
    run_dir = start("bf16", "trainer.precision=bf16", "trainer.max_steps=4")
    assert all(tensor.dtype == torch.float32 for tensor in weights(run_dir).values())


def test_wandb_without_a_key_records_offline_and_keeps_its_run(
    start, monkeypatch, capsys, at_step, tmp_path
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_IDENTITY_TOKEN_FILE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delitem(sys.modules, "openai", raising=False)  # other tests' client, on which wandb remarks
    at_step(2, send(signal.SIGTERM))
    with pytest.raises(Interrupted):
        start("logged", "logger=wandb")
    ours, *others = capsys.readouterr().err.splitlines()
    assert "recording offline" in ours
    assert not [line for line in others if line.startswith("wandb")]
    run_dir = tmp_path / "runs" / "logged"
    identity = (run_dir / "wandb_id").read_text()
    assert any(identity in path.name for path in (run_dir / "wandb").glob("offline-run-*"))
    start("logged", "logger=wandb", "trainer.max_steps=4")
    assert (run_dir / "wandb_id").read_text() == identity
    sittings = list((run_dir / "wandb").glob(f"offline-run-*-{identity}"))
    assert len(sittings) == 2  # which `wandb sync` makes one curve of
    start("another", "logger=wandb", "trainer.max_steps=2")  # as a sweep does, in the same process
    another = tmp_path / "runs" / "another"
    assert any((another / "wandb_id").read_text() in path.name for path in (another / "wandb").iterdir())
    import wandb

    wandb.finish()
