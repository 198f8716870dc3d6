"""The peak memory of this process, and the memory available to it."""

import os
import re
import resource
from pathlib import Path

import torch

PROC_SELF = Path("/proc/self")
_MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")
# cgroup versions 2 and 1: folder, files of the limit and the usage, reclaimable pages in the statistics
_CGROUP_VERSIONS = (
    ("", "memory.max", "memory.current", "inactive_file"),
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


class PeakMemory:
    """The peak since construction: on a GPU, of the memory that PyTorch allocated, otherwise of the process's
    resident memory (Linux only)."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._known = True
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            try:
                (PROC_SELF / "clear_refs").write_text("5")  # proc(5): resets the peak, VmHWM
            except OSError:
                self._known = False

    def bytes(self) -> int | None:
        """The peak so far; None if the system does not report it."""
        if not self._known:
            return None
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        found = re.search(r"^VmHWM:\s*(\d+) kB$", (PROC_SELF / "status").read_text(), re.MULTILINE)
        return int(found[1]) * 1024 if found else None


def available_memory(device: torch.device) -> int | None:
    """Bytes that this process can still allocate: a GPU's free memory, or the machine's within the
    container's limit. None if the system does not report it."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    groups = (_cgroup_memory(*version) for version in _CGROUP_VERSIONS)
    limits = (_machine_memory(), _address_space(), *groups)
    return min((limit for limit in limits if limit is not None), default=None)


def _machine_memory() -> int | None:
    try:
        found = re.search(r"^MemAvailable:\s*(\d+) kB$", _MEMINFO.read_text(), re.MULTILINE)
    except OSError:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # not Linux: the total
    return int(found[1]) * 1024 if found else None


def _address_space() -> int | None:
    """What `ulimit -v` leaves."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return None
    try:
        pages = int((PROC_SELF / "statm").read_text().split()[0])
    except OSError:
        return limit
    return max(0, limit - pages * resource.getpagesize())


def _cgroup_memory(folder: str, limit: str, used: str, reclaimable: str) -> int | None:
    group = CGROUP / folder
    try:
        most = int((group / limit).read_text())  # "max", no limit, raises ValueError
        current = int((group / used).read_text())
        found = re.search(rf"^{reclaimable} (\d+)$", (group / "memory.stat").read_text(), re.MULTILINE)
    except (OSError, ValueError):
        return None
    return max(0, most - current + (int(found[1]) if found else 0))
