from __future__ import annotations

import json
from collections import Counter
from itertools import islice, pairwise

import pytest

from mambabyte.data.streaming import StreamedBatches
from mambabyte.errors import UserError

CONTEXT = 8
LENGTHS = [30, 1, 5, 0, 17, 9, 100, 2]


def stream(source, windows, rank=0, world_size=1, position=None, micro_batch_size=2):
    return iter(StreamedBatches(source, windows, CONTEXT, micro_batch_size, 0, rank, world_size, position))


def contents(batch):
    windows, _ = batch
    return [(window["bytes"].tobytes(), window["targets"].tobytes()) for window in windows]


def read(batches, number):
    return [contents(batch) for batch in islice(batches, number)]


@pytest.mark.parametrize("windows", ["random_per_document", "contiguous"])
@pytest.mark.parametrize("world_size", [1, 2])
def test_every_position_resumes_exactly(windows, world_size, memory_source, make_documents):
    source = memory_source(make_documents(LENGTHS))
    for rank in range(world_size):
        batches = list(islice(stream(source, windows, rank, world_size), 40))  # several epochs
        for number in range(0, 30):
            position = json.loads(json.dumps(batches[number][1]))
            resumed = stream(source, windows, rank, world_size, position)
            assert read(resumed, 4) == [contents(batch) for batch in batches[number + 1 : number + 5]]


def test_contiguous_epoch_predicts_every_byte_once_over_the_ranks(memory_source, make_documents):
    documents = make_documents(LENGTHS)
    source = memory_source(documents)
    pairs = Counter()
    for rank in range(3):
        for (window,), position in stream(source, "contiguous", rank, 3, micro_batch_size=1):
            if position["epoch"]:
                break
            scored = window["targets"] >= 0
            pairs.update(
                zip(window["bytes"][scored].tolist(), window["targets"][scored].tolist(), strict=True)
            )
    assert pairs == Counter(pair for document in documents for pair in pairwise(document))


def test_random_per_document_visits_each_document_once_an_epoch(memory_source):
    source = memory_source([bytes([number]) * 20 for number in range(5)])
    windows = [
        windows[0] for windows, _ in islice(stream(source, "random_per_document", micro_batch_size=1), 10)
    ]
    assert [int(window["bytes"][0]) for window in windows] == [0, 1, 2, 3, 4] * 2


def test_single_document_can_be_left_and_resumed(memory_source):
    source = memory_source([bytes(range(50))])
    batches = list(islice(stream(source, "random_per_document"), 3))
    assert read(stream(source, "random_per_document", position=batches[0][1]), 2) == list(
        map(contents, batches[1:])
    )


def test_process_without_documents_is_told(memory_source):
    with pytest.raises(UserError, match="process 1 of 2"):
        next(stream(memory_source([bytes(100), b"x"]), "contiguous", rank=1, world_size=2))
