from __future__ import annotations

import hashlib
import itertools
import pickle
from collections import Counter

import numpy as np
import pytest

from mambabyte.data.windows.permutation import hash64
from mambabyte.data.windows.policies import POLICIES, Window
from mambabyte.data.windows.shuffled import ShuffledWindows
from mambabyte.errors import UserError
from tests.data.windows.definitions import permuted

CONTEXT = 8
LENGTHS = [1, 2, 30, 8, 9, 10, 1, 1, 17, 16, 100]


def epoch_windows(policy, epoch=0):
    return [policy.window(epoch, index) for index in range(len(policy))]


def scored_pairs(windows):
    """How often each (byte, next byte) is scored; pairs of random bytes hardly ever repeat by chance."""
    pairs = Counter()
    for window in windows:
        scored = window["targets"] >= 0
        pairs.update(zip(window["bytes"][scored].tolist(), window["targets"][scored].tolist(), strict=True))
    return pairs


def pairs_inside(documents):
    return Counter(pair for document in documents for pair in itertools.pairwise(document))


@pytest.mark.parametrize("name", POLICIES)
def test_window_has_its_shapes_and_types(name, make_corpus, make_documents):
    window = ShuffledWindows(name, make_corpus(make_documents(LENGTHS)), CONTEXT, seed=0).window(0, 0)
    assert {field: (array.shape, array.dtype) for field, array in window.items()} == {
        "bytes": ((CONTEXT,), np.dtype(np.uint8)),
        "targets": ((CONTEXT,), np.dtype(np.int16)),
        "document_start": ((CONTEXT,), np.dtype(bool)),
    }


@pytest.mark.parametrize("name", POLICIES)
def test_order_is_a_function_of_seed_and_epoch(name, make_corpus, make_documents):
    corpus = make_corpus(make_documents(LENGTHS))

    def order(seed, epoch):
        return [
            window["bytes"].tobytes()
            for window in epoch_windows(ShuffledWindows(name, corpus, CONTEXT, seed), epoch)
        ]

    assert order(1, 2) == order(1, 2)
    assert order(1, 2) != order(1, 3)
    assert order(1, 2) != order(2, 2)


@pytest.mark.parametrize("name", ["contiguous", "packed"])
@pytest.mark.parametrize("lengths", [LENGTHS, [CONTEXT + 1], [CONTEXT * 3], [CONTEXT, CONTEXT], [2, 1, 40]])
def test_every_byte_but_the_first_of_a_document_is_predicted_once(name, lengths, make_corpus, make_documents):
    documents = make_documents(lengths)
    policy = ShuffledWindows(name, make_corpus(documents), CONTEXT, seed=3)
    for epoch in (0, 1):
        assert scored_pairs(epoch_windows(policy, epoch)) == pairs_inside(documents)


def test_contiguous_pads_only_tails(make_corpus, make_documents):
    documents = make_documents([CONTEXT * 2 + 1, CONTEXT + 3])
    windows = epoch_windows(ShuffledWindows("contiguous", make_corpus(documents), CONTEXT, seed=0))
    padding = sorted(int((window["targets"] < 0).sum()) for window in windows)
    assert padding == [0, 0, 0, CONTEXT - 2]
    starts = [window["bytes"].tobytes() for window in windows if window["document_start"][0]]
    assert sorted(starts) == sorted(document[:CONTEXT] for document in documents)
    assert not any(window["document_start"][1:].any() for window in windows)


def test_packed_reads_every_byte_once_and_marks_every_start(make_corpus, make_documents):
    documents = make_documents(LENGTHS)
    text = b"".join(documents)
    policy = ShuffledWindows("packed", make_corpus(documents), CONTEXT, seed=0)
    windows = {text.find(window["bytes"][:3].tobytes()): window for window in epoch_windows(policy)}
    assert sorted(windows) == list(range(0, len(text) - 1, CONTEXT))
    starts = np.cumsum([0, *LENGTHS[:-1]])
    for begin, window in windows.items():
        read = text[begin : begin + CONTEXT]
        assert window["bytes"].tobytes() == read.ljust(CONTEXT, b"\0")
        inside = [place - begin for place in starts if begin <= place < begin + len(read)]
        assert np.flatnonzero(window["document_start"]).tolist() == inside
        expected = [
            text[place] if place < len(text) and place not in starts else -100
            for place in range(begin + 1, begin + CONTEXT + 1)
        ]
        assert window["targets"].tolist() == expected


def test_random_per_document_visits_each_document_once(make_corpus):
    documents = [bytes([number]) * length for number, length in enumerate([40, 5, 9, 1, 2, 300])]
    policy = ShuffledWindows("random_per_document", make_corpus(documents), CONTEXT, seed=0)
    assert len(policy) == 5  # the document of one byte has nothing to predict
    for epoch in range(3):
        windows = epoch_windows(policy, epoch)
        scored = {int(window["bytes"][0]): int((window["targets"] >= 0).sum()) for window in windows}
        assert scored == {0: CONTEXT, 1: 4, 2: CONTEXT, 4: 1, 5: CONTEXT}
        for window in windows:
            assert set(window["targets"][window["targets"] >= 0]) == {window["bytes"][0]}


def test_random_per_document_reaches_every_offset_evenly(make_corpus):
    document = bytes(range(CONTEXT + 4))
    policy = ShuffledWindows("random_per_document", make_corpus([document]), CONTEXT, seed=0)
    windows = [policy.window(epoch, 0) for epoch in range(400)]
    counts = Counter(int(window["bytes"][0]) for window in windows)
    # Four offsets, 100 expected at each, standard deviation 9; five of them allowed.
    assert sorted(counts) == [0, 1, 2, 3]
    assert all(55 < count < 145 for count in counts.values())
    assert all(window["document_start"][0] == (window["bytes"][0] == 0) for window in windows)


def cut(document, start, context_length):
    """The window that begins at `start` of one document, padded after its end."""
    inputs = document[start : start + context_length]
    following = document[start + 1 : start + 1 + context_length]
    window = Window(
        bytes=np.zeros(context_length, dtype=np.uint8),
        targets=np.full(context_length, -100, dtype=np.int16),
        document_start=np.zeros(context_length, dtype=bool),
    )
    window["bytes"][: len(inputs)] = inputs
    window["targets"][: len(following)] = following
    window["document_start"][0] = start == 0
    return window


def windows_one_by_one(name, documents, seed, positions):
    """The same windows by their definitions, one at a time."""
    text, begins = b"".join(documents), [0, *itertools.accumulate(map(len, documents))]
    array = np.frombuffer(text, dtype=np.uint8)
    if name == "packed":
        starts = range(0, len(text) - 1, CONTEXT)
        cuts = [(array, start) for start in starts]
    else:
        parts = [array[a:b] for a, b in itertools.pairwise(begins)]
        numbers = [number for number, part in enumerate(parts) if len(part) >= 2]
        cuts = [(parts[n], start) for n in numbers for start in range(0, len(parts[n]) - 1, CONTEXT)]
    for position in positions:
        length = len(numbers) if name == "random_per_document" else len(cuts)
        epoch, index = divmod(position, length)
        place = permuted(index, length, hash64(seed, epoch))
        if name == "random_per_document":
            number = numbers[place]
            start = hash64(seed, epoch, number) % max(len(parts[number]) - CONTEXT, 1)
            yield cut(parts[number], start, CONTEXT)
        else:
            window = cut(*cuts[place], CONTEXT)
            if name == "packed":
                inside = [begin - cuts[place][1] for begin in begins[:-1]]
                window["document_start"][:] = False
                window["document_start"][[place for place in inside if 0 <= place < CONTEXT]] = True
                window["targets"][[place - 1 for place in inside if 0 < place <= CONTEXT]] = -100
            yield window


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("lengths", [LENGTHS, [CONTEXT + 1], [5000, 3, 700, 12, 1] * 3])
def test_batches_hold_the_windows_of_their_positions(name, lengths, make_corpus, make_documents):
    documents = make_documents(lengths)
    policy = ShuffledWindows(name, make_corpus(documents), CONTEXT, seed=3)
    # Across the borders of epochs and of the chunks in which spans are computed, backwards too.
    for positions in (range(7), range(1020, 3080), [2, 5000, 1, 1024, 1023], [7]):
        batch = policy.batch(np.array(positions))
        for row, window in enumerate(windows_one_by_one(name, documents, 3, positions)):
            assert all(np.array_equal(batch[field][row], window[field]) for field in window)
            single = policy.window(*divmod(positions[row], len(policy)))
            assert all(np.array_equal(single[field], window[field]) for field in window)


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("random_per_document", "70719be8570d1a5c"),
        ("contiguous", "2207ca99fec5055d"),
        ("packed", "cc9754e12ce10ac9"),
    ],
)
def test_order_of_version_0_1(name, digest, make_corpus, make_documents):
    # Positions in checkpoints keep their meaning: these are the windows that version 0.1.0 gave.
    policy = ShuffledWindows(name, make_corpus(make_documents(LENGTHS)), CONTEXT, seed=7, shuffle=1)
    sha256 = hashlib.sha256()
    for window in itertools.chain.from_iterable(epoch_windows(policy, epoch) for epoch in range(3)):
        for field, kind in (("bytes", "u1"), ("targets", "<i2"), ("document_start", "?")):
            sha256.update(window[field].astype(kind).tobytes())
    assert sha256.hexdigest()[:16] == digest


@pytest.mark.parametrize("name", POLICIES)
def test_policy_is_pickled_without_the_windows(name, make_corpus, make_documents):
    policy = ShuffledWindows(name, make_corpus(make_documents([10_000])), CONTEXT, seed=0)
    first = policy.batch(np.arange(4))
    pickled = pickle.dumps(policy)
    # The view of all rows, written out, would be 90 KB.
    assert len(pickled) < 50_000
    assert np.array_equal(pickle.loads(pickled).batch(np.arange(4))["bytes"], first["bytes"])


@pytest.mark.parametrize("name", POLICIES)
def test_window_outside_the_epoch_is_refused(name, make_corpus, make_documents):
    policy = ShuffledWindows(name, make_corpus(make_documents(LENGTHS)), CONTEXT, seed=0)
    for index in (-1, len(policy)):
        with pytest.raises(IndexError):
            policy.window(0, index)


@pytest.mark.parametrize("name", POLICIES)
def test_documents_of_one_byte_are_refused(name, make_corpus):
    with pytest.raises(UserError, match="context_length=8"):
        ShuffledWindows(name, make_corpus([b"a"] * 50), CONTEXT, seed=0)


@pytest.mark.parametrize("name", ["random_per_document", "contiguous"])
def test_corpus_smaller_than_a_window_is_refused(name, make_corpus):
    with pytest.raises(UserError, match="context_length=8"):
        ShuffledWindows(name, make_corpus([b"abcd", b"efgh"]), CONTEXT, seed=0)


def test_unknown_policy_names_the_known_ones(make_corpus):
    with pytest.raises(UserError, match="random_per_document, contiguous, packed"):
        ShuffledWindows("random", make_corpus([bytes(20)]), CONTEXT, seed=0)
