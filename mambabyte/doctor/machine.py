"""Disk, memory and the folders that things are cached in."""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from mambabyte.doctor.finding import Finding
from mambabyte.runtime.units import GIB, byte_count

_LONGEST_COUNT = 0.5  # seconds


def disk() -> Finding:
    here = Path.cwd()
    if not os.access(here, os.W_OK):
        return Finding(
            "disk", f"{here} is not writable", "runs are written here: change to a folder of yours", True
        )
    free = shutil.disk_usage(here).free
    value = f"{free / GIB:.1f} GiB free in {here}"
    return Finding("disk", value, "free some space, or set run_dir= to another disk" if free < GIB else None)


def memory() -> Finding:
    import torch

    from mambabyte.runtime.memory import available_memory

    available = available_memory(torch.device("cpu"))
    if available is None:
        return Finding("memory", "unknown: the system does not tell")
    fix = "end other programs, or give the container more" if available < GIB else None
    return Finding("memory", f"{available / GIB:.1f} GiB to be had", fix)


def caches() -> Iterator[Finding]:
    home = Path.home()
    hub = Path(os.environ.get("HF_HOME") or home / ".cache" / "huggingface")
    yield cache("hugging face cache", hub, "HF_HOME")
    triton = Path(os.environ.get("TRITON_CACHE_DIR") or home / ".triton" / "cache")
    yield cache("triton cache", triton, "TRITON_CACHE_DIR")


def cache(name: str, folder: Path, variable: str) -> Finding:
    """Whether a folder can be written or made, and how much is in it; ``variable`` names another."""
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    fix = None if os.access(there, os.W_OK) else f"make {there} writable, or set {variable}"
    return Finding(name, f"{folder}, {_size(folder)}", fix)


def _size(folder: Path) -> str:
    """How much is in a folder; a large one is counted for half a second only."""
    if not folder.is_dir():
        return "not made yet"
    total, until = 0, time.monotonic() + _LONGEST_COUNT
    for parent, _, files in os.walk(folder):
        for file in files:
            try:
                total += os.lstat(os.path.join(parent, file)).st_size
            except OSError:
                continue  # gone meanwhile
        if time.monotonic() > until:
            return f"more than {byte_count(total)}"
    return byte_count(total)
