from __future__ import annotations

import json
from collections import Counter
from itertools import islice, pairwise

import numpy as np
import pytest

from mambabyte.data.windows.policies import POLICIES
from mambabyte.data.windows.shuffled import ShuffledWindows
from mambabyte.data.windows.streaming import Reader, StreamPosition, stack
from mambabyte.errors import UserError

CONTEXT = 8
LENGTHS = [30, 1, 5, 0, 17, 9, 100, 2, 64, 8, 0, 25]


@pytest.fixture
def make_units(memory_unit, make_documents):
    """make_units(n, 5) -> n units of 5 documents of random bytes, of different lengths."""

    def make(count, documents=12):
        contents = make_documents([LENGTHS[i % len(LENGTHS)] for i in range(count * documents)])
        return [memory_unit(contents[i * documents : (i + 1) * documents]) for i in range(count)]

    return make


def reader(units, policy="contiguous", number=0, readers=1, block=7, seed=0, context=CONTEXT):
    return Reader(units, policy, context, block, seed, number, readers)


def content(window):
    """bytes, targets and document_start of a window."""
    return tuple(tensor.numpy().tobytes() for tensor in stack([window], CONTEXT).values())


def epoch_of(reader, epoch):
    """The windows of one epoch, in order."""
    windows = []
    for window, position in reader.windows(StreamPosition(epoch)):
        if position.epoch != epoch:
            return windows
        windows.append(content(window))
    raise AssertionError("the stream ended")


def whole_epoch(units, policy, epoch, readers):
    counts = Counter()
    for number in range(readers):
        counts.update(epoch_of(reader(units, policy, number, readers), epoch))
    return counts


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("number", "readers"), [(0, 1), (1, 3), (4, 6)])
def test_every_position_resumes_exactly(policy, number, readers, make_units):
    stream = reader(make_units(4), policy, number, readers)
    served = list(islice(stream.windows(StreamPosition()), 150))
    assert served[-1][1].epoch >= 1
    for index in range(0, 140):
        position = StreamPosition(**json.loads(json.dumps(served[index][1]._asdict())))
        again = islice(stream.windows(position), 9)
        assert [(content(w), p) for w, p in again] == [
            (content(w), p) for w, p in served[index + 1 : index + 10]
        ]


@pytest.mark.parametrize("policy", ["contiguous", "packed"])
@pytest.mark.parametrize("readers", [1, 2, 3, 4, 8, 16])
@pytest.mark.parametrize("count", [1, 4, 23])
def test_readers_serve_every_byte_of_an_epoch_once(policy, readers, count, make_units):
    units = make_units(count, documents=17)
    pairs = Counter(pair for unit in units for document in unit.contents for pair in pairwise(document))
    for epoch in (0, 1):
        served = Counter()
        for texts, targets, _ in whole_epoch(units, policy, epoch, readers).elements():
            targets = np.frombuffer(targets, np.int16)
            scored = targets >= 0
            inputs = np.frombuffer(texts, np.uint8)[scored].tolist()
            served.update(zip(inputs, targets[scored].tolist(), strict=True))
        assert served == pairs


@pytest.mark.parametrize("readers", [1, 2, 3, 4, 8, 16])
@pytest.mark.parametrize("count", [1, 4, 23])
def test_readers_serve_every_document_of_an_epoch_once(readers, count, memory_unit):
    documents = [number.to_bytes(2, "big") * 3 for number in range(count * 9)]
    units = [memory_unit(documents[i * 9 : (i + 1) * 9]) for i in range(count)]
    for epoch in (0, 3):
        served = whole_epoch(units, "random_per_document", epoch, readers)
        assert sorted(text[:6] for text, _, _ in served.elements()) == documents
        assert set(served.values()) == {1}


@pytest.mark.parametrize("policy", POLICIES)
def test_a_unit_is_cut_as_the_local_policy_cuts_it(policy, make_units, memory_unit, make_corpus):
    contents = make_units(1)[0].contents
    contents = [data[: CONTEXT + 1] for data in contents] if policy == "random_per_document" else contents
    local = ShuffledWindows(policy, make_corpus(contents), CONTEXT, seed=0)
    ours = epoch_of(reader([memory_unit(contents)], policy), 0)
    assert sorted(ours) == sorted(
        tuple(array.tobytes() for array in local.window(0, index).values()) for index in range(len(local))
    )


def test_readers_never_wait_for_each_other_at_the_end_of_an_epoch(make_units):
    units = make_units(5, documents=12)
    for number in range(4):  # one of them has two units an epoch, the others one
        windows = reader(units, "contiguous", number, 4).windows(StreamPosition())
        assert len(list(islice(windows, 1000))) == 1000


def test_blocks_and_epochs_are_shuffled_by_seed(make_units):
    units = make_units(3)
    in_order = epoch_of(reader(units, block=1), 0)
    shuffled = epoch_of(reader(units, block=20), 0)
    assert sorted(shuffled) == sorted(in_order) and shuffled != in_order
    assert [sorted(shuffled[i : i + 20]) for i in range(0, len(shuffled), 20)] == [
        sorted(in_order[i : i + 20]) for i in range(0, len(shuffled), 20)
    ]
    assert epoch_of(reader(units, block=20), 1) != shuffled
    assert epoch_of(reader(units, block=20, seed=1), 0) != shuffled
    shares = [[unit for unit, _, _ in reader(make_units(23)).share(epoch)] for epoch in range(3)]
    assert all(sorted(share) == list(range(23)) for share in shares)
    assert len({tuple(share) for share in shares}) == 3


def test_no_reader_is_left_out_where_documents_are_few(memory_unit):
    units = [memory_unit([bytes([number]) * 5 for number in range(3)])]
    for number in range(8):
        stream = reader(units, "contiguous", number, 8)
        assert {int(window.text[0]) for window, _ in islice(stream.windows(StreamPosition()), 3)} == {0, 1, 2}


def test_a_stream_without_windows_is_one_sentence(memory_unit):
    with pytest.raises(UserError, match=r"reader 2 of 3.*context_length=8"):
        next(reader([memory_unit([b"x", b""])], number=1, readers=3).windows(StreamPosition()))


def test_memory_is_that_of_a_block_however_long_the_unit(memory_unit):
    """Of a unit that would be 10 GB, only as much is decoded as the current block holds."""

    class Endless:
        identity = "endless"
        decoded = 0

        def batches(self):
            for _ in range(10_000):
                Endless.decoded += 1
                yield np.zeros(1 << 20, np.uint8), np.array([0, 1 << 20])

    stream = Reader([Endless()], "packed", 1024, 64, 0, 0, 1).windows(StreamPosition())
    list(islice(stream, 10 * 1024))  # of 1,024 bytes each
    assert Endless.decoded <= 12
