"""Seeded choices as pure functions: nothing to store, and any position can be asked for at once."""

from __future__ import annotations

import hashlib

_MASK = 2**64 - 1
_ROUNDS = 4


def hash64(*numbers: int) -> int:
    """An integer in [0, 2**64) that depends on every one of the numbers, each below 2**127 in size."""
    content = b"".join(number.to_bytes(16, "little", signed=True) for number in numbers)
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def permuted(index: int, size: int, key: int) -> int:
    """Where a keyed permutation of range(size) sends index.

    A Feistel network over the smallest even number of bits that holds the range, repeated until the result
    falls in the range again (cycle walking; Black and Rogaway 2002), so it is a bijection for every key.
    """
    if not 0 <= index < size:
        raise IndexError(f"{index} is outside range({size})")
    half = ((size - 1).bit_length() + 1) // 2
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for round_number in range(_ROUNDS):
            left, right = right, left ^ (_mix(right, key, round_number) & mask)
        index = left << half | right
        if index < size:
            return index


def _mix(value: int, key: int, round_number: int) -> int:
    # splitmix64's finaliser (Steele et al. 2014) over the half, the key and the round.
    z = (key + (value << 3 | round_number) * 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ z >> 27) * 0x94D049BB133111EB) & _MASK
    return z ^ z >> 31
