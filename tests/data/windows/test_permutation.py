from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from mambabyte.data.windows.permutation import hash64, hash64_each, permuted
from tests.data.windows import definitions


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 63, 64, 65, 1000])
@pytest.mark.parametrize("key", [0, 1, 2**64 - 1])
def test_permuted_is_a_bijection(size, key):
    assert sorted(permuted(np.arange(size), size, key).tolist()) == list(range(size))


def test_other_key_gives_other_order():
    orders = {tuple(permuted(np.arange(100), 100, key).tolist()) for key in range(50)}
    assert len(orders) == 50


def test_images_are_spread_evenly():
    # 4,000 keys over 8 images: 500 expected for each, standard deviation 21; five of them allowed.
    counts = Counter(int(permuted(np.array([3]), 8, hash64(0, epoch))[0]) for epoch in range(4000))
    assert all(abs(counts[place] - 500) < 105 for place in range(8))


def test_index_outside_the_range_is_refused():
    for wrong in (-1, 40):
        with pytest.raises(IndexError):
            permuted(np.array([*range(39), wrong]), 40, 0)


def test_hash64_depends_on_each_number_and_their_order():
    assert len({hash64(0, 1), hash64(1, 0), hash64(0, 0), hash64(-1, 0), hash64(0), hash64(0, 1, 0)}) == 6


@pytest.mark.parametrize("size", [1, 31, 32, 33, 1000, 4096, 10**12])
def test_arrays_are_permuted_by_the_definition(size):
    indices = np.arange(min(size, 100))[::-1]
    for key in (0, 12345, 2**64 - 1):
        expected = [definitions.permuted(int(index), size, key) for index in indices]
        assert permuted(indices, size, key).tolist() == expected
    assert permuted(indices[:0], size, 0).tolist() == []


def test_hashes_of_an_array():
    numbers = np.array([0, 5, 2**40])
    assert hash64_each(-3, 9, last=numbers).tolist() == [hash64(-3, 9, int(n)) for n in numbers]
