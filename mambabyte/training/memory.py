"""The most memory that training took."""

import re
from pathlib import Path

import torch

_PROCESS = Path("/proc/self")


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
