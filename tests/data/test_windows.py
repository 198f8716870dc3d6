from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

from mambabyte.data.windows import POLICIES, window_policy
from mambabyte.errors import UserError

CONTEXT = 8
LENGTHS = [1, 2, 30, 8, 9, 10, 1, 1, 17, 16, 100]


def epoch_windows(policy, epoch=0):
    return [policy.window(epoch, index) for index in range(len(policy))]


def scored_pairs(windows):
    """How often each (byte, next byte) is asked for; pairs of random bytes hardly ever repeat by chance."""
    pairs = Counter()
    for window in windows:
        scored = window["targets"] >= 0
        pairs.update(zip(window["bytes"][scored].tolist(), window["targets"][scored].tolist(), strict=True))
    return pairs


def pairs_inside(documents):
    return Counter(pair for document in documents for pair in itertools.pairwise(document))


@pytest.mark.parametrize("name", POLICIES)
def test_window_has_its_shapes_and_types(name, make_corpus, make_documents):
    window = window_policy(name, make_corpus(make_documents(LENGTHS)), CONTEXT, seed=0).window(0, 0)
    assert {field: (array.shape, array.dtype) for field, array in window.items()} == {
        "bytes": ((CONTEXT,), np.dtype(np.uint8)),
        "targets": ((CONTEXT,), np.dtype(np.int64)),
        "document_start": ((CONTEXT,), np.dtype(bool)),
    }


@pytest.mark.parametrize("name", POLICIES)
def test_order_is_a_function_of_seed_and_epoch(name, make_corpus, make_documents):
    corpus = make_corpus(make_documents(LENGTHS))

    def order(seed, epoch):
        return [
            window["bytes"].tobytes()
            for window in epoch_windows(window_policy(name, corpus, CONTEXT, seed), epoch)
        ]

    assert order(1, 2) == order(1, 2)
    assert order(1, 2) != order(1, 3)
    assert order(1, 2) != order(2, 2)


@pytest.mark.parametrize("name", ["contiguous", "packed"])
@pytest.mark.parametrize("lengths", [LENGTHS, [CONTEXT + 1], [CONTEXT * 3], [CONTEXT, CONTEXT], [2, 1, 40]])
def test_every_byte_but_the_first_of_a_document_is_predicted_once(name, lengths, make_corpus, make_documents):
    documents = make_documents(lengths)
    policy = window_policy(name, make_corpus(documents), CONTEXT, seed=3)
    for epoch in (0, 1):
        assert scored_pairs(epoch_windows(policy, epoch)) == pairs_inside(documents)


def test_contiguous_pads_only_tails(make_corpus, make_documents):
    documents = make_documents([CONTEXT * 2 + 1, CONTEXT + 3])
    windows = epoch_windows(window_policy("contiguous", make_corpus(documents), CONTEXT, seed=0))
    padding = sorted(int((window["targets"] < 0).sum()) for window in windows)
    assert padding == [0, 0, 0, CONTEXT - 2]
    starts = [window["bytes"].tobytes() for window in windows if window["document_start"][0]]
    assert sorted(starts) == sorted(document[:CONTEXT] for document in documents)
    assert not any(window["document_start"][1:].any() for window in windows)


def test_packed_reads_every_byte_once_and_marks_every_start(make_corpus, make_documents):
    documents = make_documents(LENGTHS)
    text = b"".join(documents)
    policy = window_policy("packed", make_corpus(documents), CONTEXT, seed=0)
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
    policy = window_policy("random_per_document", make_corpus(documents), CONTEXT, seed=0)
    assert len(policy) == 5  # the document of one byte has nothing to predict
    for epoch in range(3):
        windows = epoch_windows(policy, epoch)
        scored = {int(window["bytes"][0]): int((window["targets"] >= 0).sum()) for window in windows}
        assert scored == {0: CONTEXT, 1: 4, 2: CONTEXT, 4: 1, 5: CONTEXT}
        for window in windows:
            assert set(window["targets"][window["targets"] >= 0]) == {window["bytes"][0]}


def test_random_per_document_reaches_every_place_evenly(make_corpus):
    document = bytes(range(CONTEXT + 4))
    policy = window_policy("random_per_document", make_corpus([document]), CONTEXT, seed=0)
    windows = [policy.window(epoch, 0) for epoch in range(400)]
    counts = Counter(int(window["bytes"][0]) for window in windows)
    # Four places, 100 expected at each, standard deviation 9; five of them allowed.
    assert sorted(counts) == [0, 1, 2, 3]
    assert all(55 < count < 145 for count in counts.values())
    assert all(window["document_start"][0] == (window["bytes"][0] == 0) for window in windows)


@pytest.mark.parametrize("name", POLICIES)
def test_documents_of_one_byte_are_refused(name, make_corpus):
    with pytest.raises(UserError, match="context_length=8"):
        window_policy(name, make_corpus([b"a"] * 50), CONTEXT, seed=0)


@pytest.mark.parametrize("name", ["random_per_document", "contiguous"])
def test_corpus_smaller_than_a_window_is_refused(name, make_corpus):
    with pytest.raises(UserError, match="context_length=8"):
        window_policy(name, make_corpus([b"abcd", b"efgh"]), CONTEXT, seed=0)


def test_unknown_policy_names_the_known_ones(make_corpus):
    with pytest.raises(UserError, match="random_per_document, contiguous, packed"):
        window_policy("random", make_corpus([bytes(20)]), CONTEXT, seed=0)
