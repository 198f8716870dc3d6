"""The Docker image, without an engine: parse its recipe, run its commands. tests/docker builds it by hand."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mambabyte.cli import main as cli
from mambabyte.errors import Interrupted

ROOT = Path(__file__).parents[2]
LOCKS = ROOT / "docker" / "locks"
CONSTRAINTS = (ROOT / "constraints.txt").read_text()


def instructions() -> list[tuple[str, str]]:
    """(instruction, arguments) of the Dockerfile, without comments; continued lines are joined."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [tuple(line.split(None, 1)) for line in joined.splitlines() if line]  # type: ignore[misc]


def arguments(name: str) -> list[str]:
    return [text for instruction, text in instructions() if instruction == name]


def pins(lock: str) -> dict[str, list[str]]:
    """The versions of each package in a lock file: one, or one per range of Python versions."""
    found: dict[str, list[str]] = {}
    for name, version in re.findall(r"^([a-z0-9-]+)==([\w.+]+)", (LOCKS / f"{lock}.lock").read_text(), re.M):
        found.setdefault(name, []).append(version)
    return found


def names(text: str) -> set[str]:
    """The names of the requirements quoted in a piece of TOML."""
    return {name.lower() for name in re.findall(r'"([A-Za-z][\w-]*)', text)}


def test_the_base_is_a_version_and_an_argument():
    assert instructions()[0][0] == "ARG"
    base = re.fullmatch(r"BASE=(\S+):(\S+)", arguments("ARG")[0])
    assert base and re.fullmatch(r"3\.\d+\.\d+-slim-[a-z]+", base[2])
    stages = {text.split(" AS ")[1] for text in arguments("FROM") if " AS " in text}
    assert {text.split(" AS ")[0] for text in arguments("FROM")} - stages == {"${BASE}"}


def test_the_build_context_holds_the_locks_and_builds_the_wheel(tmp_path: Path):
    pytest.importorskip("hatchling", reason="the wheel is built with the dev extra")
    first, *rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] != "#"]
    assert first == "*"  # nothing enters the context unless a rule below lets it in
    for path in [rule[1:] for rule in rules if rule.startswith("!")]:
        copy = shutil.copytree if (ROOT / path).is_dir() else shutil.copy
        (tmp_path / path).parent.mkdir(exist_ok=True)
        copy(ROOT / path, tmp_path / path)
    for lock in re.findall(r"docker/locks/\S+?\.lock", " ".join(arguments("RUN"))):
        for torch in ("cpu", "cuda"):
            assert (tmp_path / lock.replace("$TORCH", torch)).exists(), lock
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel"]
    built = subprocess.run(build, cwd=tmp_path, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert list(tmp_path.glob("dist/mambabyte-*.whl"))


def test_every_downloaded_package_is_checked_by_its_hash():
    commands = [part.strip() for text in arguments("RUN") for part in text.split("&&")]
    pip = [command for command in commands if re.search(r"pip\b.* (install|wheel|download)\b", command)]
    assert len(pip) >= 6
    for command in pip:
        local = command.endswith((" .", "./*/")) or "--no-index" in command
        assert local != ("--require-hashes" in command), command
        # A package without a wheel is built with the locked build tools.
        assert "wheel" not in command.split() or "--no-build-isolation" in command
    for lock in LOCKS.glob("*.lock"):
        for entry in re.split(r"\n(?=\S)", lock.read_text().strip()):
            assert entry.startswith("#") or re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry


def test_the_kernels_find_the_cuda_runtime_to_link_with(tmp_path: Path):
    """Its package has libcudart.so.13 alone, and -lcudart looks for libcudart.so."""
    compiling = (ROOT / "Dockerfile").read_text().split(" AS compile\n")[1].split("\nFROM ")[0]
    (link,) = re.findall(r"^RUN (ln -s .*)$", compiling, re.M)
    assert compiling.index(link) < compiling.index("wheel --no-build-isolation")
    folder = tmp_path / "lib" / "python3.12" / "site-packages" / "nvidia" / "cu13" / "lib"
    folder.mkdir(parents=True)
    (folder / "libcudart.so.13").write_text("the runtime")
    subprocess.run(["sh", "-c", link.replace("/opt/mambabyte", str(tmp_path))], check=True)
    assert (folder / "libcudart.so").read_text() == "the runtime"


def test_locks_hold_what_the_project_needs_in_the_tested_versions():
    toml = (ROOT / "pyproject.toml").read_text()
    needed = re.search(r"^dependencies = \[(.*?)^\]", toml, re.M | re.S)
    assert needed
    project, cuda, cpu = pins("project"), pins("torch-cuda"), pins("torch-cpu")
    assert names(needed[1]) <= {*project, *cuda}
    assert cuda["torch"] == [cpu["torch"][0].removesuffix("+cpu")] and list(cpu) == ["torch"]
    assert not project.keys() & cuda.keys()
    # No CUDA package enters the CPU image.
    assert not [name for name in project if name.startswith(("nvidia", "cuda", "triton"))]
    assert list(pins("kernels")) == ["causal-conv1d", "mamba-ssm"]
    # The locks are for Python 3.11 and later.
    tested = dict(re.findall(r"^([a-z0-9-]+)==([\w.]+)(?:; python_version >=.*)?$", CONSTRAINTS, re.M))
    for lock in ("project", "torch-cuda", "build", "compile"):
        for name, versions in pins(lock).items():
            assert name not in tested or versions == [tested[name]], name


def test_the_image_runs_the_program_and_its_health_check(tmp_path: Path):
    """In exec form, so that no shell holds a signal back, with a stand-in for tini."""
    (tmp_path / "tini").write_text('#!/bin/sh\nshift\nexec "$@"\n')
    (tmp_path / "mambabyte").write_text(f'#!/bin/sh\nexec {sys.executable} -m mambabyte "$@"\n')
    for program in ("tini", "mambabyte"):
        (tmp_path / program).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    started = json.loads(arguments("ENTRYPOINT")[0]) + json.loads(arguments("CMD")[0])
    checked = json.loads(arguments("HEALTHCHECK")[0].partition("CMD ")[2])
    for command, says in ((started, "commands:"), ([*checked, "--offline"], "Training can start.")):
        done = subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        assert says in done.stdout


def test_everything_that_is_written_lands_in_the_volume():
    (volume,) = json.loads(arguments("VOLUME")[0])
    runtime = next(text for text in arguments("ENV") if "XDG_CACHE_HOME" in text)
    written = re.findall(r"(?:HOME|\w+_DIR)=(\S+)", runtime)
    assert len(written) >= 4
    mounts = [volume.split(":")[1] for volume in compose()["volumes"]]
    assert all(Path(path).is_relative_to(volume) for path in [*written, *mounts, arguments("WORKDIR")[-1]])


def test_no_secret_and_no_index_is_left_in_the_image():
    final = (ROOT / "Dockerfile").read_text().split("FROM ${BASE} AS runtime")[1]
    assert "ARG" not in final and "pip" not in final
    for text in arguments("ARG") + arguments("ENV"):
        assert not re.search(r"token|password|api_key|://", text, re.IGNORECASE), text


def compose() -> dict:
    return yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())["services"]["mambabyte"]


def test_compose_builds_this_checkout_and_trains_without_a_secret_in_the_file(capsys):
    service = compose()
    assert (ROOT / "docker" / service["build"]).resolve() == ROOT
    assert not [name for name in service["environment"] if "=" in name]  # the values come from the shell
    assert cli.main([*service["command"], "--cfg", "job"]) == 0
    assert "name: pg19" in capsys.readouterr().out


def test_the_kubernetes_job_meets_at_its_first_pod_and_resumes_after_a_preemption(capsys):
    launcher = pytest.importorskip("torch.distributed.run")
    service, job = yaml.safe_load_all((ROOT / "docker" / "kubernetes.yaml").read_text())
    name, spec = job["metadata"]["name"], job["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    *entrypoint, program = container["command"]
    assert [*entrypoint, "mambabyte"] == json.loads(arguments("ENTRYPOINT")[0])
    assert program == "torchrun"
    options = launcher.get_args_parser().parse_args(container["args"])
    assert options.module and options.training_script == "mambabyte"
    assert spec["completions"] == spec["parallelism"] == int(options.nnodes)
    assert container["resources"]["limits"]["nvidia.com/gpu"] == int(options.nproc_per_node)
    host, port = options.rdzv_endpoint.split(":")
    assert host == f"{name}-0.{service['metadata']['name']}"
    assert service["spec"]["ports"][0]["port"] == int(port)
    assert service["spec"]["selector"] == {"job-name": name}
    assert pod["subdomain"] == service["metadata"]["name"]
    assert options.shutdown_timeout < pod["terminationGracePeriodSeconds"]  # the ranks have time to save
    (exits,) = [rule["onExitCodes"] for rule in spec["podFailurePolicy"]["rules"] if "onExitCodes" in rule]
    assert (exits["containerName"], exits["values"]) == (container["name"], [Interrupted.exit_code])
    user = f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}"
    assert user == arguments("USER")[-1] and pod["securityContext"]["runAsUser"] > 0
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}
    assert cli.main([*options.training_script_args, "--cfg", "job"]) == 0
    assert "name: pg19" in capsys.readouterr().out


UV = """#!/bin/sh
# What uv does where every version is kept: the lock again, without its comments, with one new package.
while [ "$1" != --output-file ]; do shift; done
grep -v '^#' "$2" > "$2.new" || true
[ "$(basename "$2")" != all ] || printf '%s\n' nvidia-new==1 zebra==1 >> "$2.new"
mv "$2.new" "$2"
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder to lock in, with a stand-in for uv."""
    shutil.copytree(ROOT / "docker", tmp_path / "docker")
    for name in ("constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "uv").write_text(UV)
    (tmp_path / "bin" / "uv").chmod(0o755)
    return tmp_path


def test_locking_keeps_every_pin_and_sorts_what_is_new(checkout: Path):
    environment = {**os.environ, "PATH": f"{checkout}/bin:{os.environ['PATH']}", "TORCH_INDEX": ""}
    done = subprocess.run([checkout / "docker" / "lock.sh"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "torch-cpu.lock" in done.stderr
    new = {"project": "zebra==1\n", "torch-cuda": "nvidia-new==1\n"}
    for lock in LOCKS.glob("*.lock"):
        assert (checkout / "docker" / "locks" / lock.name).read_text() == lock.read_text() + new.get(
            lock.stem, ""
        )


def test_the_script_that_builds_the_image_by_hand_parses():
    script = ROOT / "tests" / "docker" / "build_and_run.sh"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True)


def test_an_audit_counts_the_packages_and_names_the_vulnerable_ones():
    spec = importlib.util.spec_from_file_location("audit", ROOT / "docker" / "audit.py")
    assert spec and spec.loader
    audit = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(audit)
    clean = {"name": "clean", "version": "1", "vulns": []}
    unknown = {"name": "unknown", "skip_reason": "Dependency not found"}
    affected = {
        "name": "affected",
        "version": "2",
        "vulns": [{"id": "CVE-1", "fix_versions": ["2.1"]}, {"id": "CVE-2", "fix_versions": []}],
    }
    assert audit.summary({"dependencies": [clean, unknown]}) == (
        "1 of 2 packages audited, 0 with a known vulnerability; the service has no answer for the others",
        False,
    )
    text, vulnerable = audit.summary({"dependencies": [affected, unknown]})
    assert vulnerable
    assert text.splitlines()[1:] == [
        "  affected 2: CVE-1, fixed in 2.1",
        "  affected 2: CVE-2, not fixed yet",
    ]
