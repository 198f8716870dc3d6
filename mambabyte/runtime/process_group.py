"""The process group of a command that torchrun or a scheduler runs in several processes."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@contextmanager
def process_group(device: "torch.device") -> Iterator[tuple["torch.device", int]]:
    """Join the ``WORLD_SIZE`` processes, if there are several; yields this one's device and rank."""
    import torch
    from torch import distributed

    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield device, 0
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device, distributed.get_rank()
    finally:
        distributed.destroy_process_group()
