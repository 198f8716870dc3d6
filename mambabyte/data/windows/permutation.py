"""Seeded random choices as pure functions: nothing to store, and random access to any position."""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np

SHUFFLE = 2  # the version of `permuted`, which checkpoints name
_ROUNDS = 4
_SORTED = 1 << 16  # the largest range that is permuted by sorting


def hash64(*numbers: int) -> int:
    """A hash in [0, 2**64) of integers, each below 2**127 in size."""
    content = b"".join(number.to_bytes(16, "little", signed=True) for number in numbers)
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def hash64_each(*numbers: int, last: np.ndarray) -> np.ndarray:
    """hash64(*numbers, n) for every n of an array, as uint64."""
    head = b"".join(number.to_bytes(16, "little", signed=True) for number in numbers)
    tails = (n.to_bytes(16, "little", signed=True) for n in last.tolist())
    digests = b"".join(hashlib.blake2b(head + tail, digest_size=8).digest() for tail in tails)
    return np.frombuffer(digests, dtype="<u8")


def random_words(key: int, count: int) -> np.ndarray:
    """(count,) uint64, uniformly distributed: a pure function of the key, the same on every machine."""
    return _mix(np.arange(count, dtype=np.uint64), key, 0)


def permuted(indices: np.ndarray, size: int, key: int, shuffle: int = SHUFFLE) -> np.ndarray:
    """What a keyed permutation of range(size) maps the (n,) indices to, as int64.

    Up to 65,536 numbers are sorted by their hashes, so that every order is equally likely. More are not held
    in memory: a Feistel network over the smallest even number of bits that covers the range, repeated until
    the result is in the range (cycle walking; Black and Rogaway 2002), so it is a bijection for every key.

    Args:
        shuffle: 1 is the Feistel network for every size, which runs of earlier versions go on with. Its
            orders are uneven where there are few numbers.
    """
    if len(indices) and not 0 <= indices.min() <= indices.max() < size:
        raise IndexError(f"an index is outside range({size})")
    if shuffle > 1 and size <= _SORTED:
        return _sorted_by_hash(size, key)[indices]
    half = np.uint64(((size - 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << int(half)) - 1)
    result = np.empty(len(indices), dtype=np.int64)
    waiting, current = np.arange(len(indices)), indices.astype(np.uint64)
    while len(waiting):
        left, right = current >> half, current & mask
        for round_number in range(_ROUNDS):
            left, right = right, left ^ (_mix(right, key, round_number) & mask)
        current = left << half | right
        inside = current < np.uint64(size)
        result[waiting[inside]] = current[inside]
        waiting, current = waiting[~inside], current[~inside]
    return result


@lru_cache(maxsize=8)  # an epoch's is asked for in parts
def _sorted_by_hash(size: int, key: int) -> np.ndarray:
    """range(size) sorted by hashes, which all differ: `_mix` is a bijection."""
    return np.argsort(_mix(np.arange(size, dtype=np.uint64), key, 0))


def _mix(value: np.ndarray, key: int, round_number: int) -> np.ndarray:
    """splitmix64's finaliser (Steele et al. 2014) over value, key and round; uint64 overflow wraps."""
    u = np.uint64
    z = (value << u(3) | u(round_number)) * u(0x9E3779B97F4A7C15) + u(key)
    z = (z ^ z >> u(30)) * u(0xBF58476D1CE4E5B9)
    z = (z ^ z >> u(27)) * u(0x94D049BB133111EB)
    return z ^ z >> u(31)
