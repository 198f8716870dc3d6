"""Numbers that a device finds out, brought to the host without waiting for it."""

from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


class LateReader:
    """Numbers of one step after another: those of a CPU at once, those of a GPU when the next step is under
    way, when the GPU has long had them and loses no time over them."""

    def __init__(self) -> None:
        self._sent: deque[tuple[int, Tensor, Any]] = deque()

    def send(self, step: int, values: Tensor) -> None:
        """Begin to bring ``values`` (n,) of a step to the host."""
        if values.device.type != "cuda":
            self._sent.append((step, values, None))
            return
        host = torch.empty_like(values, device="cpu", pin_memory=True)
        host.copy_(values, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._sent.append((step, host, event))

    def arrived(self, wait: bool = False) -> Iterator[tuple[int, list[float]]]:
        """(step, values) of what has come since the last call; with ``wait``, of all that was sent.

        Which steps these are does not depend on the clock, so that all ranks see the same.
        """
        while self._sent:
            step, values, event = self._sent[0]
            if event is not None:
                if not wait and len(self._sent) == 1:
                    return
                event.synchronize()
            self._sent.popleft()
            yield step, values.tolist()
