"""The keyed permutation by its definition: one index at a time, in Python's integers."""

MASK = 2**64 - 1


def permuted(index: int, size: int, key: int, shuffle: int = 2) -> int:
    if shuffle == 2 and size <= 65536:
        return sorted(range(size), key=lambda number: mix(number, key, 0))[index]
    half = ((size - 1).bit_length() + 1) // 2
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for round_number in range(4):
            left, right = right, left ^ (mix(right, key, round_number) & mask)
        index = left << half | right
        if index < size:
            return index


def mix(value: int, key: int, round_number: int) -> int:
    z = (key + (value << 3 | round_number) * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ z >> 27) * 0x94D049BB133111EB) & MASK
    return z ^ z >> 31
