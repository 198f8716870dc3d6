"""Python, required packages, PyTorch and CUDA."""

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from mambabyte.doctor.finding import Finding
from mambabyte.runtime.units import GIB

NEEDED = {"lightning": (2, 6, 4), "datasets": (5, 0, 1), "hydra-core": (1, 3, 2), "numpy": (), "pyarrow": ()}


def python() -> Finding:
    supported = (3, 10) <= sys.version_info < (3, 14)
    fix = None if supported else "install Python 3.10 to 3.13 and create a virtual environment with it"
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
        reason, fix = str(fault).splitlines()[0], "pip install --force-reinstall torch"
        return Finding("torch", f"cannot be imported: {reason}", fix, blocking=True)
    threads = f"{torch.get_num_threads()} threads on {os.cpu_count()} cores"
    return Finding("torch", f"{torch.__version__}, {threads}")


def cuda() -> Finding:
    import torch

    if torch.cuda.is_available():
        devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        names = [f"{device.name} ({device.total_memory / GIB:.0f} GiB)" for device in devices]
        return Finding("cuda", f"{torch.version.cuda}: {', '.join(names)}")
    if shutil.which("nvidia-smi") is None:
        return Finding("cuda", "no NVIDIA device: training runs on the CPU")
    if torch.version.cuda is None:
        return Finding("cuda", "an NVIDIA driver, but torch's CPU build", "install torch's CUDA build")
    fix = "check nvidia-smi and CUDA_VISIBLE_DEVICES"
    return Finding("cuda", "an NVIDIA driver, but torch sees no device", fix)
