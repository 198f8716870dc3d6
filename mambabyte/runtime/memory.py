"""The most memory that training took, and how much there is to take."""

import os
import re
from pathlib import Path

import torch

_PROCESS = Path("/proc/self")
_SYSTEM = Path("/proc/meminfo")
# Control groups, version 2 and 1: the limit, what is in use, statistics, and what these call the pages of
# files that the kernel would give back.
_CONTAINERS = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    (
        *("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
        *("memory/memory.stat", "total_inactive_file"),
    ),
)
_CONTROL_GROUP = Path("/sys/fs/cgroup")


class PeakMemory:
    """Counts from its construction on, so that an earlier job of the same process is left out.

    On a GPU it is what PyTorch allocated there, elsewhere the process's resident memory (Linux only).
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._known = True
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            try:
                (_PROCESS / "clear_refs").write_text("5")  # proc(5): resets the peak, VmHWM
            except OSError:
                self._known = False

    def bytes(self) -> int | None:
        """The peak so far; None where the system does not tell."""
        if not self._known:
            return None
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        found = re.search(r"^VmHWM:\s*(\d+) kB$", (_PROCESS / "status").read_text(), re.MULTILINE)
        return int(found[1]) * 1024 if found else None


def available_memory(device: torch.device) -> int | None:
    """Bytes that this process could still take on a device: a GPU's free memory, or the machine's, or what a
    container's limit leaves of it. None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    limits = [limit for limit in (_of_the_system(), *map(_of_a_container, _CONTAINERS)) if limit is not None]
    return min(limits, default=None)


def _of_the_system() -> int | None:
    try:
        found = re.search(r"^MemAvailable:\s*(\d+) kB$", _SYSTEM.read_text(), re.MULTILINE)
    except OSError:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # not Linux: what is built in
    return int(found[1]) * 1024 if found else None


def _of_a_container(names: tuple[str, str, str, str]) -> int | None:
    limit, used, statistics, reclaimable = names
    try:
        most = int((_CONTROL_GROUP / limit).read_text())  # "max" is no number: no limit
        current = int((_CONTROL_GROUP / used).read_text())
        found = re.search(rf"^{reclaimable} (\d+)$", (_CONTROL_GROUP / statistics).read_text(), re.MULTILINE)
    except (OSError, ValueError):
        return None
    return max(0, most - current + (int(found[1]) if found else 0))
