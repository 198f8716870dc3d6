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


def test_every_order_of_few_numbers_is_equally_likely():
    # 12,000 keys, 120 orders of five: 100 expected of each, standard deviation 10; six of them allowed.
    orders = Counter(tuple(permuted(np.arange(5), 5, hash64(0, epoch)).tolist()) for epoch in range(12_000))
    assert len(orders) == 120
    assert 40 < min(orders.values()) <= max(orders.values()) < 160


@pytest.mark.parametrize("size", [16, 64, 256, 1024, 4096])
def test_neighbours_part_as_in_a_fair_shuffle(size):
    # Of size - 1 pairs of neighbours in an order, 2 / size are neighbours in the range: about 2, with
    # a variance of 2. In 400 orders: 800 with a standard deviation of 28; five of them allowed.
    together = 0
    for epoch in range(400):
        order = permuted(np.arange(size), size, hash64(0, epoch))
        together += int((np.abs(np.diff(order)) == 1).sum())
    assert abs(together - 400 * 2 * (size - 1) / size) < 142


def test_index_outside_the_range_is_refused():
    for wrong in (-1, 40):
        with pytest.raises(IndexError):
            permuted(np.array([*range(39), wrong]), 40, 0)


def test_hash64_depends_on_each_number_and_their_order():
    assert len({hash64(0, 1), hash64(1, 0), hash64(0, 0), hash64(-1, 0), hash64(0), hash64(0, 1, 0)}) == 6


@pytest.mark.parametrize("shuffle", [1, 2])
@pytest.mark.parametrize("size", [1, 31, 32, 33, 1000, 4096, 2**16, 2**16 + 1, 10**12])
def test_arrays_are_permuted_by_the_definition(size, shuffle):
    indices = np.arange(min(size, 100 if shuffle == 1 or size < 2**16 else 2))[::-1]
    for key in (0, 12345, 2**64 - 1):
        expected = [definitions.permuted(int(index), size, key, shuffle) for index in indices]
        assert permuted(indices, size, key, shuffle).tolist() == expected
    assert permuted(indices[:0], size, 0).tolist() == []


def test_hashes_of_an_array():
    numbers = np.array([0, 5, 2**40])
    assert hash64_each(-3, 9, last=numbers).tolist() == [hash64(-3, 9, int(n)) for n in numbers]
