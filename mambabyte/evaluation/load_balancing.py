"""One evaluation by all ranks of a process group, each of which takes some of the documents."""

import heapq
from collections.abc import Sequence

import numpy as np


def documents_per_rank(lengths: Sequence[int], ranks: int) -> list[list[int]]:
    """The indices of each rank's documents, ascending: longest first, each to the least loaded rank."""
    shares: list[list[int]] = [[] for _ in range(ranks)]
    loads = [(0, rank) for rank in range(ranks)]
    for index in np.argsort([-length for length in lengths], kind="stable"):
        load, rank = heapq.heappop(loads)
        shares[rank].append(int(index))
        heapq.heappush(loads, (load + lengths[index], rank))
    return [sorted(share) for share in shares]
