"""``mambabyte doctor``: what this machine has to train with, and a line of advice on each thing it lacks."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import mambabyte
from mambabyte.training.credentials import has_wandb_credentials

GIB = 2**30
REBUILD = "remove the kernel cache, so that the kernel is built anew; if it stays wrong, please report it"
NEEDED = {"lightning": (2, 6, 4), "datasets": (5, 0, 1), "hydra-core": (1, 3, 2), "numpy": (), "pyarrow": ()}


@dataclass(frozen=True)
class Finding:
    """One thing looked at. ``fix`` is None where all is well; ``blocking`` keeps training from starting."""

    name: str
    value: str
    fix: str | None = None
    blocking: bool = False


def run(as_json: bool = False) -> int:
    """Prints the findings; returns 0 if training can start here, else 1."""
    findings = list(examine())
    ready = not any(finding.blocking for finding in findings)
    if as_json:
        print(json.dumps({"ready": ready, "findings": [dataclasses.asdict(finding) for finding in findings]}))
        return int(not ready)
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        mark = " " if finding.fix is None else "x" if finding.blocking else "!"
        print(f"{mark} {finding.name:{width}}  {finding.value}")
        if finding.fix:
            print(f"  {'':{width}}  -> {finding.fix}")
    print("Training can start." if ready else "Training cannot start: mend what is marked x.")
    return int(not ready)


def examine() -> Iterator[Finding]:
    yield Finding("mambabyte", f"{mambabyte.__version__} in {Path(mambabyte.__file__).parent}")
    yield python()
    yield from packages()
    torch = pytorch()
    yield torch
    if not torch.blocking:
        yield cuda()
        yield from kernels()
    yield disk()
    fix = "for logger=wandb online: `wandb login` or WANDB_API_KEY"
    yield credential("wandb", has_wandb_credentials(), fix)
    yield credential("hugging face", hugging_face_token(), "for private or gated data sets: HF_TOKEN")


def python() -> Finding:
    supported = (3, 10) <= sys.version_info < (3, 14)
    fix = None if supported else "install Python 3.10 to 3.13 and make a virtual environment with it"
    return Finding("python", f"{platform.python_version()} ({sys.executable})", fix, blocking=not supported)


def packages() -> Iterator[Finding]:
    for name, minimum in NEEDED.items():
        wanted = f"{name}>={'.'.join(map(str, minimum))}" if minimum else name
        try:
            found = version(name)
        except PackageNotFoundError:
            yield Finding(name, "missing", f'pip install "{wanted}"', blocking=True)
            continue
        release = tuple(int(part) for part in found.split(".")[:3] if part.isdigit())
        old = release < minimum
        yield Finding(name, found, f'pip install --upgrade "{wanted}"' if old else None, blocking=old)


def pytorch() -> Finding:
    try:
        import torch
    except (ImportError, OSError) as fault:
        reason = str(fault).splitlines()[0]
        return Finding(
            "torch", f"does not import: {reason}", "pip install --force-reinstall torch", blocking=True
        )
    return Finding(
        "torch", f"{torch.__version__}, {torch.get_num_threads()} threads on {os.cpu_count()} cores"
    )


def cuda() -> Finding:
    import torch

    if torch.cuda.is_available():
        devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        names = [f"{device.name} ({device.total_memory / GIB:.0f} GiB)" for device in devices]
        return Finding("cuda", ", ".join(names))
    if shutil.which("nvidia-smi") is None:
        return Finding("cuda", "no NVIDIA device: training runs on the CPU")
    if torch.version.cuda is None:
        return Finding("cuda", "an NVIDIA driver, but torch's CPU build", "install torch's CUDA build")
    return Finding(
        "cuda", "an NVIDIA driver, but torch sees no device", "check nvidia-smi and CUDA_VISIBLE_DEVICES"
    )


def kernels() -> Iterator[Finding]:
    from mambabyte.ops import describe_backends
    from mambabyte.ops.cpu import build

    compiler = build.find_compiler()
    fix = (
        None
        if compiler
        else "install g++ or clang++, or set CXX: the CPU scan is tens of times slower without"
    )
    yield Finding("c++ compiler", compiler or "none", fix)
    folder = build.cache_folder()
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    fix = None if os.access(there, os.W_OK) else f"make {there} writable, or set XDG_CACHE_HOME"
    yield Finding("kernel cache", str(folder), fix)
    for backend in describe_backends():
        name = f"{backend.op}: {backend.name}"
        checked, fix = "", None
        if backend.available and backend.op == "selective_scan" and backend.name != "reference":
            checked, fix = check_selective_scan(backend.name)
        state = "available" if backend.available else "not available"
        yield Finding(name, f"{state}, {backend.reason}{checked}", fix, blocking=fix is not None)


def check_selective_scan(backend: str) -> tuple[str, str | None]:
    """Runs a small scan and its gradients against the reference; returns the end of its line, and the fix."""
    import torch

    from mambabyte.ops import selective_scan

    def outputs(name: str) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        u, delta, A, B, C = (
            torch.randn(shape, generator=generator).to("cpu" if backend == "cpu" else "cuda")
            for shape in ((2, 65, 24), (2, 65, 24), (24, 16), (2, 65, 16), (2, 65, 16))
        )
        A = -A.exp()
        inputs = [tensor.requires_grad_() for tensor in (u, delta, A, B, C)]
        out, _ = selective_scan(u, delta, A, B, C, delta_softplus=True, return_final_state=True, backend=name)
        return [out.detach(), *torch.autograd.grad(out.square().mean(), inputs)]

    try:
        pairs = list(zip(outputs(backend), outputs("reference"), strict=True))
    except Exception as fault:  # whatever a broken kernel raises, the doctor reports it
        return f", but fails: {str(fault).splitlines()[0] if str(fault) else type(fault).__name__}", REBUILD
    error = max(float((got - law).abs().max() / law.abs().max()) for got, law in pairs)
    # Two fp32 summation orders of 65 steps differ by about 1e-6 of the largest value; a wrong kernel by 1e-1.
    return f", agrees with the reference to {error:.0e}", None if error < 1e-4 else REBUILD


def disk() -> Finding:
    here = Path.cwd()
    free = shutil.disk_usage(here).free
    value = f"{free / GIB:.1f} GiB free in {here}"
    if not os.access(here, os.W_OK):
        return Finding(
            "disk", f"{here} is not writable", "runs are written here: change to a folder of yours", True
        )
    return Finding("disk", value, "free some space, or set run_dir= to another disk" if free < GIB else None)


def credential(name: str, present: bool, fix: str) -> Finding:
    return Finding(name, "credential present" if present else f"no credential ({fix})")


def hugging_face_token() -> bool:
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    return bool(os.environ.get("HF_TOKEN")) or (home / "token").is_file()
