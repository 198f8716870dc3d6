"""One evaluation by all ranks of a process group, each of which takes some of the documents."""

import heapq
from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as distributed


def documents_per_rank(lengths: Sequence[int], ranks: int) -> list[list[int]]:
    """The indices of each rank's documents, ascending: longest first, each to the least loaded rank."""
    shares: list[list[int]] = [[] for _ in range(ranks)]
    loads = [(0, rank) for rank in range(ranks)]
    for index in np.argsort([-length for length in lengths], kind="stable"):
        load, rank = heapq.heappop(loads)
        shares[rank].append(int(index))
        heapq.heappush(loads, (load + lengths[index], rank))
    return [sorted(share) for share in shares]


def rank_and_count() -> tuple[int, int]:
    """This process's rank and the number of ranks: (0, 1) without a process group."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def sum_over_ranks(values: np.ndarray, device: torch.device) -> np.ndarray:
    """The elementwise sum of every rank's float64 array, on every rank."""
    total = torch.from_numpy(values).to(device)
    distributed.all_reduce(total)
    return total.cpu().numpy()
