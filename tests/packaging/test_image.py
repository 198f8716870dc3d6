"""What the image is built from, read as text: tests/docker builds and runs it, by hand."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
LOCKS = ROOT / "docker" / "locks"
CONSTRAINTS = (ROOT / "constraints.txt").read_text()
ENTRYPOINT = ["tini", "--", "mambabyte"]


def instructions() -> list[tuple[str, str]]:
    """(instruction, arguments) of the Dockerfile, continued lines joined, comments left out."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [tuple(line.split(None, 1)) for line in joined.splitlines() if line]  # type: ignore[misc]


def arguments(name: str) -> list[str]:
    return [text for instruction, text in instructions() if instruction == name]


def pins(lock: str) -> dict[str, list[str]]:
    """The versions of each package in a lock: one, or one for each range of Pythons."""
    found: dict[str, list[str]] = {}
    for name, version in re.findall(r"^([a-z0-9-]+)==([\w.+]+)", (LOCKS / f"{lock}.lock").read_text(), re.M):
        found.setdefault(name, []).append(version)
    return found


def names(text: str) -> set[str]:
    """The names of the requirements that a piece of TOML quotes."""
    return {name.lower() for name in re.findall(r'"([A-Za-z][\w-]*)', text)}


def test_the_base_is_a_version_and_an_argument():
    assert instructions()[0][0] == "ARG"
    base = re.fullmatch(r"BASE=(\S+):(\S+)", arguments("ARG")[0])
    assert base and re.fullmatch(r"3\.\d+\.\d+-slim-[a-z]+", base[2])
    stages = {text.split(" AS ")[1] for text in arguments("FROM") if " AS " in text}
    assert {text.split(" AS ")[0] for text in arguments("FROM")} - stages == {"${BASE}"}


def test_what_is_copied_is_there_and_reaches_the_engine():
    """.dockerignore lists what may pass; the checkout's own files are the only source."""
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    allowed = [line[1:] for line in rules if line.startswith("!")]
    assert "*" in rules
    for path in allowed:
        assert (ROOT / path).exists(), path
    copied = [text for text in arguments("COPY") if not text.startswith("--from")]
    assert copied == ["docker/locks docker/locks", ". ."]
    # What hatchling reads to build the wheel, and what the wheel is made of.
    assert {"pyproject.toml", "README.md", "LICENSE", "conf", "mambabyte", "docker/locks"} == set(allowed)
    assert arguments("ADD") == []


def test_every_package_that_is_fetched_is_checked_by_its_hash():
    commands = [part.strip() for text in arguments("RUN") for part in text.split("&&")]
    pip = [command for command in commands if re.search(r"pip\b.* (install|wheel|download)\b", command)]
    assert len(pip) >= 6
    for command in pip:
        local = command.endswith((" .", "./*/")) or "--no-index" in command
        assert local != ("--require-hashes" in command), command
        # A package without a wheel is built by what the locks name.
        assert "wheel" not in command.split() or "--no-build-isolation" in command
    for lock in LOCKS.glob("*.lock"):
        for entry in re.split(r"\n(?=\S)", lock.read_text().strip()):
            assert entry.startswith("#") or re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry


def test_locks_hold_what_the_project_needs_in_the_tested_versions():
    toml = (ROOT / "pyproject.toml").read_text()
    needed = re.search(r"^dependencies = \[(.*?)^\]", toml, re.M | re.S)
    assert needed
    project, cuda, cpu = pins("project"), pins("torch-cuda"), pins("torch-cpu")
    assert names(needed[1]) <= {*project, *cuda}
    assert cuda["torch"] == [cpu["torch"][0].removesuffix("+cpu")] and list(cpu) == ["torch"]
    assert not project.keys() & cuda.keys()
    # Nothing of CUDA reaches an image of the CPU build.
    assert not [name for name in project if name.startswith(("nvidia", "cuda", "triton"))]
    assert list(pins("kernels")) == ["causal-conv1d", "mamba-ssm"]
    # The locks are for Python 3.11 and later.
    tested = dict(re.findall(r"^([a-z0-9-]+)==([\w.]+)(?:; python_version >=.*)?$", CONSTRAINTS, re.M))
    for lock in ("project", "torch-cuda", "build", "compile"):
        for name, versions in pins(lock).items():
            assert name not in tested or versions == [tested[name]], name


def test_signals_reach_the_program_of_a_user_without_rights():
    assert json.loads(arguments("ENTRYPOINT")[0]) == ENTRYPOINT
    assert re.search(r'CMD \["mambabyte", "doctor"\]$', arguments("HEALTHCHECK")[0])
    assert json.loads(arguments("VOLUME")[0]) == ["/srv"]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", arguments("USER")[-1])


def test_no_secret_and_no_index_is_left_in_the_image():
    final = (ROOT / "Dockerfile").read_text().split("FROM ${BASE} AS runtime")[1]
    assert "ARG" not in final and "pip" not in final
    for text in arguments("ARG") + arguments("ENV"):
        assert not re.search(r"token|password|api_key|://", text, re.IGNORECASE), text


def test_compose_reserves_the_gpus_and_keeps_runs_data_and_caches():
    composed = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())
    service = composed["services"]["mambabyte"]
    assert (ROOT / "docker" / service["build"]).resolve() == ROOT
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    # By name alone: the values come from the shell.
    assert service["environment"] == ["WANDB_API_KEY", "HF_TOKEN"]
    mounts = dict(volume.split(":") for volume in service["volumes"])
    assert mounts == {"runs": "/srv/runs", "data": "/srv/data", "cache": "/srv/cache"}
    assert set(composed["volumes"]) == set(mounts)
    assert service["command"] == ["train", "+experiment=pg19"]
    assert service["restart"].startswith("on-failure")


def test_the_kubernetes_job_meets_at_its_first_pod_and_goes_on_after_a_preemption():
    service, job = yaml.safe_load_all((ROOT / "docker" / "kubernetes.yaml").read_text())
    name, spec = job["metadata"]["name"], job["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    options = dict(part.split("=", 1) for part in container["args"] if part.startswith("--"))
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"] == int(options["--nnodes"])
    assert container["resources"]["limits"]["nvidia.com/gpu"] == int(options["--nproc-per-node"])
    host, port = options["--rdzv-endpoint"].split(":")
    assert host == f"{name}-0.{service['metadata']['name']}"
    assert service["spec"]["clusterIP"] == "None" and service["spec"]["ports"][0]["port"] == int(port)
    assert service["spec"]["selector"] == {"job-name": name}
    assert pod["subdomain"] == service["metadata"]["name"]
    assert container["command"] == [*ENTRYPOINT[:2], "torchrun"]
    assert container["args"][-3:] == ["train", "+experiment=pg19", "trainer=ddp"]
    # Time for the ranks to save, and 75 no failure.
    assert int(options["--shutdown-timeout"]) < pod["terminationGracePeriodSeconds"]
    exits = [rule["onExitCodes"] for rule in spec["podFailurePolicy"]["rules"] if "onExitCodes" in rule]
    assert exits == [{"containerName": container["name"], "operator": "In", "values": [75]}]
    assert pod["restartPolicy"] == "Never" and pod["securityContext"]["runAsNonRoot"]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize("script", ["docker/lock.sh", "tests/docker/build_and_run.sh"])
def test_scripts_parse(script):
    assert (ROOT / script).stat().st_mode & 0o100
    subprocess.run(["bash", "-n", ROOT / script], check=True)


def test_an_audit_counts_what_was_asked_and_names_what_was_found():
    spec = importlib.util.spec_from_file_location("audit", ROOT / "docker" / "audit.py")
    assert spec and spec.loader
    audit = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(audit)
    sound = {"name": "sound", "version": "1", "vulns": []}
    unknown = {"name": "unknown", "skip_reason": "Dependency not found"}
    weak = {
        "name": "weak",
        "version": "2",
        "vulns": [{"id": "CVE-1", "fix_versions": ["2.1"]}, {"id": "CVE-2", "fix_versions": []}],
    }
    assert audit.summary({"dependencies": [sound, unknown]}) == (
        "1 of 2 packages audited, 0 with a known weakness; the service has no answer for the others",
        False,
    )
    text, is_weak = audit.summary({"dependencies": [weak, unknown]})
    assert is_weak
    assert text.splitlines()[1:] == [
        "  weak 2: CVE-1, mended in 2.1",
        "  weak 2: CVE-2, mended in no version yet",
    ]
