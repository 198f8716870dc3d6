"""The process group of a command that torchrun or a scheduler runs in several processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import distributed


@contextmanager
def process_group(device: torch.device) -> Iterator[tuple[torch.device, int]]:
    """Join the ``WORLD_SIZE`` processes, if there are several; yields this one's device and rank."""
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


def rank_and_count() -> tuple[int, int]:
    """This process's rank and the number of ranks: (0, 1) without a process group."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def add_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """``tensor`` with those of all other ranks added to it in place. On GPUs no host waits for another (as it
    would in Lightning's ``reduce``, which begins with a barrier)."""
    if rank_and_count()[1] > 1:
        distributed.all_reduce(tensor)
    return tensor


def sum_over_ranks(values: np.ndarray, device: torch.device) -> np.ndarray:
    """The elementwise sum of every rank's float64 array, on every rank."""
    return add_over_ranks(torch.from_numpy(values).to(device)).cpu().numpy()


def gather_objects(value: Any) -> list[Any]:
    """Every rank's picklable value, in the order of ranks, on every rank."""
    ranks = rank_and_count()[1]
    if ranks == 1:
        return [value]
    values: list[Any] = [None] * ranks
    distributed.all_gather_object(values, value)
    return values
