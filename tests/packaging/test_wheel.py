"""The wheel contains its configuration, works from any folder, and declares what it imports."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the checkout, so that the checkout is not changed."""
    pytest.importorskip("build", reason="the wheel is built with the dev extra")
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, source)
    for name in ("mambabyte", "conf"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(source / "dist"),
        str(source),
    ]
    built = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = (source / "dist").glob("mambabyte-*.whl")
    return path


def test_the_wheel_holds_the_program_its_kernels_and_every_yaml(wheel: Path):
    names = set(zipfile.ZipFile(wheel).namelist())
    yaml = {path.relative_to(ROOT).as_posix() for path in (ROOT / "conf").rglob("*.yaml")}
    assert {f"mambabyte/{path}" for path in yaml} <= names
    for pattern in ("*.py", "*.cpp", "*.h", "*.cu", "*.cuh", "*.html"):
        assert {path.relative_to(ROOT).as_posix() for path in (ROOT / "mambabyte").rglob(pattern)} <= names
    assert not [
        name for name in names if name.startswith(("conf/", "tests/", "data/")) or "__pycache__" in name
    ]
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_installed_wheel_composes_its_configuration_elsewhere(wheel: Path, tmp_path: Path):
    target, elsewhere = tmp_path / "target", tmp_path / "elsewhere"
    elsewhere.mkdir()
    # --ignore-installed: a development environment may have the same version installed from the checkout.
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--ignore-installed",
    ]
    subprocess.run([*install, "--target", str(target), str(wheel)], check=True, timeout=120)
    environment = {**os.environ, "PYTHONPATH": str(target)}
    done = subprocess.run(
        [sys.executable, str(target / "bin" / "mambabyte"), "train", "experiment=quickstart", "--cfg", "job"],
        capture_output=True, text=True, cwd=elsewhere, env=environment, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "name: quickstart" in done.stdout
    where = subprocess.run(
        [sys.executable, "-m", "mambabyte", "train", "--info", "searchpath"],
        capture_output=True, text=True, cwd=elsewhere, env=environment, timeout=60,
    )  # fmt: skip
    assert str(target / "mambabyte" / "conf") in where.stdout
    assert list(elsewhere.iterdir()) == []


def requirements(text: str) -> set[str]:
    """The normalised names of the requirements in a piece of TOML or a constraints file."""
    return set(re.findall(r'^\s*"?([a-z][a-z0-9-]*)[<>=]', text, re.M))


def section(name: str) -> str:
    """The requirements in one list of pyproject.toml, one per line (Python 3.10 has no tomllib)."""
    found = re.search(rf"^{name} = \[(.*?)\]$", (ROOT / "pyproject.toml").read_text(), re.M | re.S)
    assert found
    return "\n".join(re.findall(r'"[^"]+"', found[1]))


def test_every_import_is_declared():
    provides = {"hydra": "hydra-core", "yaml": "pyyaml"}
    optional = {"mamba_ssm", "causal_conv1d", "triton", "tensorboard", "lm_eval", "gguf", "peft"}
    optional |= {"starlette", "uvicorn"}
    declared = requirements(section("dependencies"))
    undeclared = set()
    for path in (ROOT / "mambabyte").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(), str(path))):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            else:
                modules = [node.module or ""] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            for module in {module.split(".")[0] for module in modules} - optional - {"mambabyte"}:
                distribution = provides.get(module, module).replace("_", "-")
                if module not in sys.stdlib_module_names and distribution not in declared:
                    undeclared.add(f"{path.relative_to(ROOT)}: {module}")
    assert not undeclared


def test_every_dependency_is_pinned_for_every_python():
    pins = requirements((ROOT / "constraints.txt").read_text())
    needed = requirements("\n".join(map(section, ("dependencies", "dev", "release"))))
    assert {"torch", "zstandard", "pytest"} <= needed <= pins
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        assert re.fullmatch(r"#.*|[a-z0-9-]+==[\w.]+(; python_version (<|>=) \"3\.11\")?", line), line
