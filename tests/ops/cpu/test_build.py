import ctypes
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mambabyte import ops
from mambabyte.ops import backend_for, backends, describe_backends
from mambabyte.ops.causal_conv1d import cpu as causal_conv1d
from mambabyte.ops.cpu import build
from mambabyte.ops.residual_norm import cpu as residual_norm
from mambabyte.ops.selective_scan import cpu as selective_scan
from mambabyte.ops.ssd import cpu as ssd
from mambabyte.ops.step import cpu as step


@pytest.fixture(scope="session")
def compiled():
    """The kernels of this machine, from its own cache."""
    return Path(build.library()._name)


@pytest.fixture
def fresh_cache(tmp_path, monkeypatch):
    """An empty cache of compiled kernels, and no library loaded."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    build._load.cache_clear()
    yield tmp_path / "mambabyte"
    build._load.cache_clear()


def test_kernels_are_built_once_and_kept(fresh_cache):
    build.library()
    (kept,) = fresh_cache.glob("kernels-*.so")
    written = kept.stat().st_mtime_ns
    build._load.cache_clear()
    build.library()
    assert kept.stat().st_mtime_ns == written
    assert list(fresh_cache.iterdir()) == [kept], "no temporary file is left"


def test_without_a_compiler_the_reference_serves_and_one_line_says_so(fresh_cache):
    program = (
        "import torch; from mambabyte.ops import selective_scan as s, backend_for; t = torch.ones(1, 3, 2);"
        "[s(t, t, -torch.ones(2, 1), t[..., :1], t[..., :1]) for _ in range(3)]; print(backend_for(t.device))"
    )
    environment = {**os.environ, "PATH": "", "XDG_CACHE_HOME": str(fresh_cache)}
    environment.pop("CXX", None)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == "reference", done.stderr
    assert done.stderr.count("no C++ compiler found") == 1


@pytest.mark.parametrize(
    ("name", "served", "said"), [("reference", "reference", 0), ("fast", "cpu", 1), ("", "cpu", 0)]
)
def test_the_environment_overrides_the_choice(name, served, said):
    program = (
        "import torch; from mambabyte.ops import backend_for;"
        "[print(backend_for(torch.device('cpu'))) for _ in range(2)]"
    )
    environment = {**os.environ, "MAMBABYTE_BACKEND": name}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.stdout.split() == [served, served], done.stderr
    assert done.stderr.count("names no backend") == said


def test_a_compiler_that_fails_is_named(fresh_cache, monkeypatch):
    monkeypatch.setattr(build, "find_compiler", lambda: "/bin/false")
    with pytest.raises(build.KernelUnavailable, match="/bin/false could not compile"):
        build.library()
    assert not list(fresh_cache.glob("*"))


def test_a_compiler_that_fails_is_tried_once_and_one_line_says_so(fresh_cache, tmp_path, monkeypatch, caplog):
    calls, compiler = tmp_path / "calls", tmp_path / "compiler"
    compiler.write_text(f"#!/bin/sh\necho $@ >> {calls}\necho broken >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setattr(build, "find_compiler", lambda: str(compiler))
    backends._warn_once.cache_clear()
    x = torch.ones(1, 3, 2)
    for _ in range(10):
        ops.causal_conv1d(x, torch.ones(2, 4), None)
    # its version, and each of the ways to tune for the processor
    assert len(calls.read_text().splitlines()) == 1 + len(build.TUNING)
    assert [record.getMessage() for record in caplog.records] == [
        "using the reference causal_conv1d, tens of times slower than the cpu kernel: "
        f"{compiler} could not compile the kernels (broken)"
    ]


@pytest.mark.parametrize("spoil", [lambda whole: whole[:4096], lambda whole: b"", lambda whole: whole[::-1]])
def test_a_cached_file_that_is_damaged_is_built_again(compiled, fresh_cache, spoil, monkeypatch):
    monkeypatch.setattr(build, "_compile", lambda _, folder: Path(shutil.copy(compiled, folder)))
    build.library()
    (kept,) = fresh_cache.iterdir()
    kept.unlink()  # what is loaded is mapped, and must stay as it is
    kept.write_bytes(spoil(compiled.read_bytes()))
    build._load.cache_clear()
    build.library()
    assert list(fresh_cache.iterdir()) == [kept]
    assert kept.read_bytes() == compiled.read_bytes()


def test_what_a_killed_compilation_leaves_is_removed(fresh_cache, tmp_path, monkeypatch):
    """Killed with its compiler, which has left temporary files too."""
    compiler = tmp_path / "compiler"
    compiler.write_text('#!/bin/sh\n[ "$1" = --version ] || { touch $TMPDIR/cc1.s; kill -9 $PPID; }\n')
    compiler.chmod(0o755)
    child = os.fork()
    if child == 0:
        monkeypatch.setattr(build, "find_compiler", lambda: str(compiler))
        build.library()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    (left,) = fresh_cache.iterdir()
    with build._build_folder(fresh_cache) as used:
        build._remove_leftovers(fresh_cache)
        assert not left.exists()
        assert list(fresh_cache.iterdir()) == [used], "a folder in use stays"
    assert list(fresh_cache.iterdir()) == []


def test_a_user_without_a_home_gets_a_cache_of_their_own(tmp_path, monkeypatch):
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(build.os.path, "expanduser", lambda path: path)  # as for an unknown user
    monkeypatch.setattr(build.tempfile, "gettempdir", lambda: str(tmp_path))
    folder = build.writable_cache_folder()
    assert folder == build.cache_folder() == tmp_path / f"mambabyte-{os.getuid()}"
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("structure", "fields"),
    [
        ("selective_scan_arguments", selective_scan.Arguments),
        ("causal_conv1d_arguments", causal_conv1d.Arguments),
        ("residual_norm_arguments", residual_norm.Arguments),
        ("ssd_arguments", ssd.Arguments),
        ("mamba_step_arguments", step.Arguments),
        ("mamba_step_block", step.Block),
        ("mamba_step_state", step.LayerState),
        ("mamba_step_embedding", step.Embedding),
    ],
)
def test_a_structure_with_a_missing_field_is_refused(structure, fields):
    class Shortened(ctypes.Structure):
        _fields_ = fields._fields_[:-1]

    build.kernel("mamba_step", **{structure: fields})
    with pytest.raises(RuntimeError, match=f"the fields of {structure} differ between Python"):
        build.kernel("mamba_step", **{structure: Shortened})


def test_backends_are_described():
    backends = {(b.op, b.name): b for b in describe_backends()}
    assert (
        backends["selective_scan", "reference"].available and backends["causal_conv1d", "reference"].available
    )
    assert backends["selective_scan", "cpu"].reason
    assert backend_for(torch.device("cpu"), torch.float64) == "reference"
    assert backend_for(torch.device("meta")) == "reference"


def arm_compiler():
    """A C++ compiler for 64-bit ARM: the native one, a cross-compiler, or zig's (pip install ziglang)."""
    if os.uname().machine in ("aarch64", "arm64"):
        return [build.find_compiler()]
    if shutil.which("aarch64-linux-gnu-g++"):
        return ["aarch64-linux-gnu-g++"]
    if importlib.util.find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "c++", "-target", "aarch64-linux-gnu"]
    return None


@pytest.mark.parametrize("processor", ["x86-64-v3", "x86-64", "aarch64"])
def test_sources_compile_for_other_processors(processor, tmp_path):
    if processor == "aarch64":
        command = arm_compiler()
    else:
        x86 = os.uname().machine == "x86_64" and build.find_compiler()
        command = [x86, f"-march={processor}"] if x86 else None
    if command is None:
        pytest.skip(f"no compiler for {processor} here")
    sources = [os.path.join(os.path.dirname(build.__file__), name) for name in build.SOURCES]
    for source in sources:
        compile_it = [*command, *build.FLAGS, source, "-o", str(tmp_path / "kernels.so")]
        done = subprocess.run(compile_it, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[:2000]
