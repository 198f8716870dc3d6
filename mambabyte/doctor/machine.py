"""Disk, memory, arithmetic and cache folders."""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from mambabyte.doctor.finding import Finding
from mambabyte.runtime.units import GIB, byte_count

LONGEST_COUNT = 0.5  # seconds spent on measuring one cache


def disk() -> Finding:
    here = Path.cwd()
    if not os.access(here, os.W_OK):
        fix = "runs are written here: change to a writable folder"
        return Finding("disk", f"{here} is not writable", fix, blocking=True)
    free = shutil.disk_usage(here).free
    low = "free some space, or set run_dir= to another disk" if free < GIB else None
    return Finding("disk", f"{free / GIB:.1f} GiB free in {here}", low)


def memory() -> Finding:
    import torch

    from mambabyte.runtime.memory import available_memory

    available = available_memory(torch.device("cpu"))
    if available is None:
        return Finding("memory", "unknown on this system")
    fix = "end other programs, or give the container more" if available < GIB else None
    return Finding("memory", f"{available / GIB:.1f} GiB available", fix)


def precision() -> Finding:
    from mambabyte.runtime.devices import choose_device
    from mambabyte.runtime.precision import fastest_precision, slowness_of_bf16

    device = choose_device("auto")
    try:
        fastest, slow = fastest_precision(device), slowness_of_bf16(device)
    except RuntimeError as fault:  # of a GPU that other processes have filled, for example
        return Finding("precision", f"not measured: {str(fault).splitlines()[0]}")
    slowness = f"; {slow}" if slow else ""
    return Finding("precision", f"{fastest.name} is fast here ({fastest.reason}){slowness}")


def caches() -> Iterator[Finding]:
    home = Path.home()
    hub = Path(os.environ.get("HF_HOME") or home / ".cache" / "huggingface")
    yield cache("hugging face cache", hub, "HF_HOME")
    triton = Path(os.environ.get("TRITON_CACHE_DIR") or home / ".triton" / "cache")
    yield cache("triton cache", triton, "TRITON_CACHE_DIR")


def cache(name: str, folder: Path, variable: str) -> Finding:
    """Whether a folder can be written or created, and its size; ``variable`` is what sets another folder."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    fix = None if os.access(existing, os.W_OK) else f"make {existing} writable, or set {variable}"
    return Finding(name, f"{folder}, {_size(folder)}", fix)


def _size(folder: Path) -> str:
    """The size of a folder; a lower bound if counting takes too long."""
    if not folder.is_dir():
        return "not created yet"
    total, until = 0, time.monotonic() + LONGEST_COUNT
    for parent, _, files in os.walk(folder):
        for file in files:
            try:
                total += os.lstat(os.path.join(parent, file)).st_size
            except OSError:
                continue  # deleted meanwhile
        if time.monotonic() > until:
            return f"more than {byte_count(total)}"
    return byte_count(total)
