"""Reading numbers back from a device without waiting for it."""

from collections import deque
from collections.abc import Iterator

import torch
from torch import Tensor


class DeferredReadback:
    """Copies a few numbers of each step to the host.

    A CPU's numbers are available at once, a GPU's after the next step has been started: by then the copy has
    finished.
    """

    def __init__(self) -> None:
        self._pending: deque[tuple[int, Tensor, torch.cuda.Event | None]] = deque()

    def start(self, step: int, values: Tensor) -> None:
        """Start to copy ``values`` (n,) of a step."""
        event = torch.cuda.Event() if values.is_cuda else None
        values = values.to("cpu", non_blocking=True)  # from a GPU, to pinned memory
        if event is not None:
            event.record()
        self._pending.append((step, values, event))

    def completed(self, wait: bool = False) -> Iterator[tuple[int, list[float]]]:
        """(step, values) of newly available copies, the same steps on all ranks; with ``wait``, of all."""
        while self._pending:
            step, values, event = self._pending[0]
            if event is not None:
                if not wait and len(self._pending) == 1:
                    return
                event.synchronize()
            self._pending.popleft()
            yield step, values.tolist()
