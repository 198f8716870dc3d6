"""What the doctor finds, on machines that lack one thing or another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch

import mambabyte.ops
from mambabyte.commands import doctor
from mambabyte.doctor import kernels, machine, services, software
from mambabyte.doctor.finding import Finding
from mambabyte.ops.backends import backend_for
from mambabyte.runtime.credentials import has_wandb_credentials
from mambabyte.runtime.precision import Precision

SECRET = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_API_KEY", "HF_TOKEN", "HF_HOME", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def findings(capsys: pytest.CaptureFixture[str], offline: bool = True) -> tuple[int, dict[str, dict]]:
    code = doctor.run(doctor.DoctorSettings(json=True, offline=offline))
    answer = json.loads(capsys.readouterr().out)
    assert answer["ready"] is (code == 0)
    assert sorted(answer) == ["findings", "ready", "schema"] and answer["schema"] == 1
    assert all(sorted(finding) == ["blocking", "fix", "name", "value"] for finding in answer["findings"])
    return code, {finding["name"]: finding for finding in answer["findings"]}


def test_every_backend_is_named_and_available_ones_are_checked(capsys):
    code, found = findings(capsys)
    assert code == 0
    for backend in mambabyte.ops.describe_backends():
        value = found[f"{backend.op}: {backend.name}"]["value"]
        assert value.startswith("available" if backend.available else "not available")
        if backend.available and backend.name != "reference":
            assert "agrees with the reference to" in value


class OffInBackward(torch.autograd.Function):
    """The identity, whose gradient is a thousandth too large."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return 1.001 * grad


@pytest.mark.parametrize("fault", [lambda x: 1.001 * x, OffInBackward.apply])
@pytest.mark.parametrize("op", ["selective_scan", "causal_conv1d", "residual_norm", "ssd"])
def test_a_kernel_with_other_values_or_gradients_is_found(op, fault, monkeypatch):
    honest = getattr(mambabyte.ops, op)

    def wrong(*inputs, backend, **options):
        out = honest(*inputs, backend="reference", **options)
        if backend == "reference":
            return out
        return (fault(out[0]), out[1]) if isinstance(out, tuple) else fault(out)

    assert kernels.check(op, "cpu")[1] is None
    monkeypatch.setattr(mambabyte.ops, op, wrong)
    assert kernels.check(op, "cpu")[1] == kernels.REBUILD


def test_a_wrong_or_broken_step_is_found(capsys, monkeypatch):
    from mambabyte.models import MambaByte

    honest = MambaByte.step

    def wrong(self, byte, state):
        logits, after = honest(self, byte, state)
        honestly = backend_for(byte.device, op="mamba_step") == "reference"
        return (logits if honestly else logits + 0.01), after

    monkeypatch.setattr(MambaByte, "step", wrong)
    code, found = findings(capsys)
    assert code == 1
    assert found["mamba_step: cpu"]["blocking"] and found["mamba_step: cpu"]["fix"] == kernels.REBUILD
    assert not found["selective_scan: cpu"]["blocking"]

    def broken(*inputs, backend, **options):
        raise RuntimeError("illegal instruction\nand more")

    monkeypatch.setattr(mambabyte.ops, "selective_scan", broken)
    assert kernels.check("selective_scan", "cpu") == (", but fails: illegal instruction", kernels.REBUILD)


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

    monkeypatch.setattr(software, "version", version)
    assert doctor.run(doctor.DoctorSettings(offline=True)) == 1
    out = capsys.readouterr().out
    assert 'pip install "datasets>=5.0.1"' in out
    assert 'pip install --upgrade "lightning>=2.6.4"' in out
    assert "Training cannot start" in out


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # `import torch` raises ImportError
from mambabyte.cli.main import main
sys.exit(main(["doctor", "--offline", "--json"]))
"""


def test_without_torch_the_doctor_still_answers():
    # in a process of its own, since this one has imported what needs torch
    answer = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], capture_output=True, text=True)
    assert answer.returncode == 1, answer.stderr
    found = {finding["name"]: finding for finding in json.loads(answer.stdout)["findings"]}
    assert found["torch"]["blocking"]
    assert "cuda" not in found and "disk" in found


@pytest.mark.parametrize(("built_for", "advice"), [(None, "CUDA build"), ("13.0", "CUDA_VISIBLE_DEVICES")])
def test_a_driver_without_a_device_is_explained(monkeypatch, built_for, advice):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", built_for)
    monkeypatch.setattr(software.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert advice in (software.cuda().fix or "")
    monkeypatch.setattr(software.shutil, "which", lambda name: None)
    assert software.cuda().fix is None


def test_a_folder_that_cannot_be_written_blocks(monkeypatch):
    monkeypatch.setattr(machine.os, "access", lambda path, mode: False)
    assert machine.disk().blocking
    assert all(cache.fix and not cache.blocking for cache in (kernels.cache(), *machine.caches()))


def test_caches_are_counted(home, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    monkeypatch.setenv("HF_HOME", str(home / "hub"))
    (home / "hub" / "deep").mkdir(parents=True)
    (home / "hub" / "deep" / "file").write_bytes(bytes(2500))
    found = {cache.name: cache for cache in machine.caches()}
    assert found["hugging face cache"].value == f"{home}/hub, 2.5 kB"
    assert kernels.cache().value == f"{home}/cache/mambabyte, not created yet"
    monkeypatch.setattr(machine, "LONGEST_COUNT", -1.0)
    assert "more than" in next(cache.value for cache in machine.caches() if cache.name.startswith("hug"))


def test_little_memory_is_reported(monkeypatch):
    monkeypatch.setattr("mambabyte.runtime.memory.available_memory", lambda device: 2**29)
    assert "container" in (machine.memory().fix or "")
    monkeypatch.setattr("mambabyte.runtime.memory.available_memory", lambda device: None)
    assert machine.memory().fix is None


@pytest.mark.parametrize(
    ("fastest", "slow", "said"),
    [
        (Precision("bf16", "3 times as fast"), None, "bf16 is fast here (3 times as fast)"),
        (Precision("fp32", "no"), "bf16 takes longer", "fp32 is fast here (no); bf16 takes longer"),
    ],
    ids=["bf16", "fp32"],
)
def test_the_fast_precision_is_named(fastest, slow, said, monkeypatch, capsys):
    monkeypatch.setattr("mambabyte.runtime.precision.fastest_precision", lambda device: fastest)
    monkeypatch.setattr("mambabyte.runtime.precision.slowness_of_bf16", lambda device: slow)
    code, found = findings(capsys)
    assert (code, found["precision"]["value"], found["precision"]["fix"]) == (0, said, None)


def test_a_device_that_cannot_be_timed_is_no_obstacle(monkeypatch):
    def full(device):
        raise torch.OutOfMemoryError("CUDA out of memory.\nAnd more")

    monkeypatch.setattr("mambabyte.runtime.precision.fastest_precision", full)
    assert machine.precision() == Finding("precision", "not measured: CUDA out of memory.")


def test_credentials_are_seen_wherever_they_are_and_never_shown(home, monkeypatch, capsys):
    assert not has_wandb_credentials()
    assert not services.has_hugging_face_token()

    netrc = home / ".netrc"
    netrc.write_text(f"machine api.wandb.ai login user password {SECRET}\n")
    netrc.chmod(0o600)
    (home / ".cache" / "huggingface").mkdir(parents=True)
    (home / ".cache" / "huggingface" / "token").write_text(SECRET)
    assert has_wandb_credentials()
    assert services.has_hugging_face_token()
    netrc.write_text("machine\n")
    assert not has_wandb_credentials()

    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    _, found = findings(capsys)
    assert found["wandb"]["value"] == found["hugging face"]["value"] == "credential present"
    assert SECRET not in json.dumps(found)


@pytest.fixture
def service():
    """The address of a server on this machine that refuses everybody, as a hub does without a token."""

    class Refusing(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_error(401)

        def log_message(self, *arguments):
            pass

    server = HTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def addresses(service, monkeypatch):
    """Sets the addresses of hub and wandb; nothing on the way there."""
    for name in ("http_proxy", "HTTP_PROXY", "HF_HUB_OFFLINE", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)

    def at(hub: str, wandb: str) -> dict:
        monkeypatch.setenv("HF_ENDPOINT", hub)
        monkeypatch.setenv("WANDB_BASE_URL", wandb)
        return {finding.name: finding for finding in services.reachability()}

    return at


def test_a_service_that_answers_at_all_is_reachable(service, addresses):
    found = addresses(service, service + "/some/where")
    assert [finding.value for finding in found.values()] == ["127.0.0.1 answers"] * 2
    assert all(finding.fix is None for finding in found.values())


def test_a_service_that_does_not_answer_is_no_obstacle(service, addresses, capsys, monkeypatch):
    closed = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    port = closed.server_address[1]
    closed.server_close()
    found = addresses(f"http://user:{SECRET}@127.0.0.1:{port}", "not an address")
    assert found["hugging face hub"].value == "127.0.0.1 cannot be reached: connection refused"
    assert "HF_ENDPOINT" in (found["hugging face hub"].fix or "")
    assert "WANDB_MODE=offline" in (found["wandb service"].fix or "")
    code, everything = findings(capsys, offline=False)
    assert code == 0
    assert SECRET not in json.dumps(everything)


def test_a_service_that_keeps_silent_is_not_waited_for(addresses, monkeypatch):
    monkeypatch.setattr(services, "LONGEST_WAIT", 0.2)
    silent = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)  # takes the connection, and never reads it
    try:
        address = f"http://127.0.0.1:{silent.server_address[1]}"
        assert all("cannot be reached" in finding.value for finding in addresses(address, address).values())
    finally:
        silent.server_close()


def test_offline_contacts_no_service(addresses, monkeypatch, capsys):
    monkeypatch.setattr(services, "urlopen", lambda *a, **k: os._exit(3))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert all("not asked" in finding.value for finding in services.reachability())
    assert "wandb service" not in findings(capsys, offline=True)[1]
