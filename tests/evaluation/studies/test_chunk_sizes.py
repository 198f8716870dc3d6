"""What eval says about a model's chunks."""

import numpy as np
import pytest
import torch

from mambabyte.evaluation import Protocol
from mambabyte.evaluation.studies.chunk_sizes import SAMPLE_BYTES, chunk_study
from tests.models.every_model import MODELS, random_bytes


def built(name):
    torch.manual_seed(0)
    return MODELS[name].build().eval()


def test_all_bytes_of_a_small_corpus_count() -> None:
    model, protocol = built("hnet-2-stages"), Protocol(context_length=20, batch_size=2)
    documents = [random_bytes(n, seed=n).to(torch.uint8).numpy() for n in (50, 7, 20)]
    study = chunk_study(model, documents, protocol)
    chunks = np.zeros(2)
    for document in documents:
        for at in range(0, len(document), 20):
            window = torch.from_numpy(document[None, at : at + 20])
            chunks += window.numel() * np.array(model.chunk_rates(window))
    assert study.values["bytes"] == 77
    assert study.values["bytes_per_chunk"] == pytest.approx((77 / chunks).tolist())
    assert study.values["flops_per_byte"] == model.flops_per_byte(20, (chunks / 77).tolist()).inference
    assert study.values["expected_flops_per_byte"] == model.flops_per_byte(20).inference
    assert "bytes from the outermost stage to the innermost" in study.lines[0]
    assert "(77 bytes of 77, in windows of 20)" in study.lines[0]


def test_of_a_large_corpus_a_sample_counts() -> None:
    document = random_bytes(3 * SAMPLE_BYTES).to(torch.uint8).numpy()
    study = chunk_study(built("hnet"), [document], Protocol(context_length=4096, batch_size=4))
    assert study.values["bytes"] == SAMPLE_BYTES
    assert f"({SAMPLE_BYTES:,} bytes of {len(document):,}, in windows of 4,096)" in study.lines[0]


def test_a_model_that_reads_no_chunks_has_no_such_figures() -> None:
    assert chunk_study(built("megabyte"), [np.zeros(9, np.uint8)], Protocol(context_length=4)) is None
