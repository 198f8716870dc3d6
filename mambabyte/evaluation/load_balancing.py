"""One evaluation by all ranks of a process group: each takes some of the documents."""

import heapq
from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as distributed


def deal(lengths: Sequence[int], ranks: int) -> list[list[int]]:
    """For each rank the indices of its documents, ascending: the longest first, each to whom has least."""
    hands: list[list[int]] = [[] for _ in range(ranks)]
    least = [(0, rank) for rank in range(ranks)]
    for index in np.argsort([-length for length in lengths], kind="stable"):
        load, rank = heapq.heappop(least)
        hands[rank].append(int(index))
        heapq.heappush(least, (load + lengths[index], rank))
    return [sorted(hand) for hand in hands]


def rank_and_count() -> tuple[int, int]:
    """This process's rank and how many there are: (0, 1) without a process group."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def sum_over_ranks(values: np.ndarray, device: torch.device) -> np.ndarray:
    """The elementwise sum of every rank's float64 array, on every rank."""
    total = torch.from_numpy(values).to(device)
    distributed.all_reduce(total)
    return total.cpu().numpy()
