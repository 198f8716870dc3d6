"""Reading numbers back from a device without waiting for it."""

from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


class DeferredReadback:
    """Copies a few numbers of each step to the host.

    A CPU's numbers are available at once. A GPU's are available after the next step has been started, by
    which time the copy has finished and costs no waiting.
    """

    def __init__(self) -> None:
        self._pending: deque[tuple[int, Tensor, Any]] = deque()

    def start(self, step: int, values: Tensor) -> None:
        """Start to copy ``values`` (n,) of a step."""
        if values.device.type != "cuda":
            self._pending.append((step, values, None))
            return
        host = torch.empty_like(values, device="cpu", pin_memory=True)
        host.copy_(values, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._pending.append((step, host, event))

    def completed(self, wait: bool = False) -> Iterator[tuple[int, list[float]]]:
        """(step, values) of the copies that are newly available; with ``wait``, of all that were started.

        Which steps these are does not depend on timing, so it is the same on all ranks.
        """
        while self._pending:
            step, values, event = self._pending[0]
            if event is not None:
                if not wait and len(self._pending) == 1:
                    return
                event.synchronize()
            self._pending.popleft()
            yield step, values.tolist()
