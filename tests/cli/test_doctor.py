"""What the doctor finds, on machines that lack one thing or another."""

from __future__ import annotations

import json
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch

import mambabyte.ops
from mambabyte.commands import doctor

SECRET = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_API_KEY", "HF_TOKEN", "HF_HOME", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def findings(capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, dict]]:
    code = doctor.run(as_json=True)
    answer = json.loads(capsys.readouterr().out)
    assert answer["ready"] is (code == 0)
    return code, {finding["name"]: finding for finding in answer["findings"]}


def test_every_backend_is_named_and_those_at_hand_are_checked(capsys):
    code, found = findings(capsys)
    assert code == 0
    for backend in mambabyte.ops.describe_backends():
        value = found[f"{backend.op}: {backend.name}"]["value"]
        assert value.startswith("available" if backend.available else "not available")
        if backend.available and backend.op == "selective_scan" and backend.name != "reference":
            assert "agrees with the reference to" in value


def test_a_kernel_that_computes_something_else_is_found(monkeypatch):
    honest = mambabyte.ops.selective_scan

    def wrong(*inputs, backend, **options):
        out = honest(*inputs, backend="reference", **options)
        return out * 1.001 if backend == "cpu" else out

    monkeypatch.setattr(mambabyte.ops, "selective_scan", wrong)
    assert doctor.check_selective_scan("cpu")[1] == doctor.REBUILD

    def broken(*inputs, backend, **options):
        raise RuntimeError("illegal instruction\nand more")

    monkeypatch.setattr(mambabyte.ops, "selective_scan", broken)
    assert doctor.check_selective_scan("cpu") == (", but fails: illegal instruction", doctor.REBUILD)


def test_no_compiler_is_a_warning_with_a_remedy(capsys, monkeypatch):
    monkeypatch.setattr("mambabyte.ops.cpu.build.find_compiler", lambda: None)
    code, found = findings(capsys)
    assert code == 0
    assert "install g++" in found["c++ compiler"]["fix"]


def test_a_missing_or_malicious_package_keeps_training_from_starting(capsys, monkeypatch):
    def version(name):
        if name == "datasets":
            raise PackageNotFoundError(name)
        return {"lightning": "2.6.3"}.get(name, "99.0.0")

    monkeypatch.setattr(doctor, "version", version)
    assert doctor.run() == 1
    out = capsys.readouterr().out
    assert 'pip install "datasets>=5.0.1"' in out
    assert 'pip install --upgrade "lightning>=2.6.4"' in out
    assert "Training cannot start" in out


def test_without_torch_the_doctor_still_answers(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # `import torch` raises ImportError
    code, found = findings(capsys)
    assert code == 1
    assert found["torch"]["blocking"]
    assert "cuda" not in found


@pytest.mark.parametrize(("built_for", "advice"), [(None, "CUDA build"), ("13.0", "CUDA_VISIBLE_DEVICES")])
def test_a_driver_without_a_device_is_explained(monkeypatch, built_for, advice):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", built_for)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert advice in (doctor.cuda().fix or "")
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    assert doctor.cuda().fix is None


def test_a_folder_that_cannot_be_written_blocks(monkeypatch):
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: False)
    assert doctor.disk().blocking


def test_credentials_are_seen_wherever_they_are_and_never_shown(home, monkeypatch, capsys):
    assert not doctor.has_wandb_credentials()
    assert not doctor.hugging_face_token()

    netrc = home / ".netrc"
    netrc.write_text(f"machine api.wandb.ai login user password {SECRET}\n")
    netrc.chmod(0o600)
    (home / ".cache" / "huggingface").mkdir(parents=True)
    (home / ".cache" / "huggingface" / "token").write_text(SECRET)
    assert doctor.has_wandb_credentials()
    assert doctor.hugging_face_token()
    netrc.write_text("machine\n")
    assert not doctor.has_wandb_credentials()

    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    _, found = findings(capsys)
    assert found["wandb"]["value"] == found["hugging face"]["value"] == "credential present"
    assert SECRET not in json.dumps(found)
