"""Reading numbers back from a device without waiting for it, and what all ranks learn at the same step."""

from collections import deque
from collections.abc import Iterator

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from mambabyte.runtime.process_group import add_over_ranks


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


class AnyRank:
    """Tells all ranks at the same step that one of them has said so: on GPUs, where no rank waits for the
    answer, a step later."""

    def __init__(self) -> None:
        self._counts = DeferredReadback()

    def says(self, trainer: Trainer, step: int, mine: bool) -> bool:
        """Whether any rank has said so. Every rank must call this after every ``step``."""
        if trainer.world_size == 1:
            return mine
        # filled on the device: torch.tensor would wait until the copy of its number has had its turn there
        count = torch.full((1,), float(mine), device=trainer.strategy.root_device)
        self._counts.start(step, add_over_ranks(count))
        return any(count for _, [count] in self._counts.completed())
