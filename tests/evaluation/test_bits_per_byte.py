"""evaluate() against the definition written out as a double loop."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from mambabyte.data import ByteCorpus
from mambabyte.errors import UserError
from mambabyte.evaluation import evaluate
from mambabyte.models import ByteLM, MambaByteConfig

LENGTHS = [1, 2, 40, 7, 8, 9, 23, 1, 64, 16]


@pytest.fixture(scope="module")
def model() -> ByteLM:
    torch.manual_seed(0)
    model = MambaByteConfig(d_model=32, n_layer=2, d_state=4).build().eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(10)  # far from uniform, so that context matters
    return model


@pytest.fixture(scope="module")
def corpus() -> ByteCorpus:
    data = np.random.default_rng(0).integers(0, 256, sum(LENGTHS), dtype=np.uint8)
    offsets = np.concatenate(([0], np.cumsum(LENGTHS))).astype(np.int64)
    return ByteCorpus(data, offsets, [str(i) for i in range(len(LENGTHS))])


def nats_of(model: ByteLM, context: list[int], byte: int) -> float:
    """-ln p(byte | context), the context run through the model on its own."""
    logits = model(torch.tensor([context]))[0, -1].double()
    return float(logits.logsumexp(0) - logits[byte])


def by_hand(model: ByteLM, corpus: ByteCorpus, context_of: Callable[[int], int]) -> float:
    """Each byte at position p of its document from the bytes [context_of(p), p)."""
    total = 0.0
    with torch.no_grad():
        for index in range(corpus.num_documents):
            document = corpus.document(index).tolist()
            for position, byte in enumerate(document):
                context = document[context_of(position) : position]
                total += nats_of(model, context, byte) if position else math.log(256)
    return total


@pytest.mark.parametrize("context_length", [1, 8, 13, 100])
def test_disjoint_is_the_double_loop(model: ByteLM, corpus: ByteCorpus, context_length: int) -> None:
    # windows of context_length predictions begin at bytes 1, 1 + L, 1 + 2L, ... and see one byte before that
    expected = by_hand(model, corpus, lambda p: (p - 1) // context_length * context_length)
    result = evaluate(model, corpus, "disjoint", context_length=context_length, batch_size=3)
    assert result.nats == pytest.approx(expected, rel=1e-5)  # fp32 logits, computed in other shapes
    assert (result.bytes, result.documents) == (sum(LENGTHS), len(LENGTHS))
    assert result.bits_per_byte == result.nats / result.bytes / math.log(2)


@pytest.mark.parametrize("chunk", [1, 8, 13, 100])
@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_stateful_sees_the_whole_document(
    model: ByteLM, corpus: ByteCorpus, chunk: int, batch_size: int
) -> None:
    expected = by_hand(model, corpus, lambda p: 0)
    result = evaluate(model, corpus, "stateful", context_length=chunk, batch_size=batch_size)
    assert result.nats == pytest.approx(expected, rel=1e-5)
    assert result.bytes == sum(LENGTHS)


@pytest.mark.parametrize("protocol", ["disjoint", "stateful"])
def test_batch_size_changes_nothing(model: ByteLM, corpus: ByteCorpus, protocol: str) -> None:
    figures = [evaluate(model, corpus, protocol, 8, batch_size).nats for batch_size in (1, 2, 7, 1000)]
    assert figures == pytest.approx([figures[0]] * 4, rel=1e-6)


def test_the_protocols_differ_here(model: ByteLM, corpus: ByteCorpus) -> None:
    # or the tests above could not tell them apart
    figures = [evaluate(model, corpus, protocol, 8).nats for protocol in ("disjoint", "stateful")]
    assert figures[0] != pytest.approx(figures[1], rel=1e-3)


def test_max_bytes_cuts_the_corpus(model: ByteLM, corpus: ByteCorpus) -> None:
    cut = ByteCorpus(corpus.bytes[:45], np.array([0, 1, 3, 43, 45]), list("abcd"))
    result = evaluate(model, corpus, context_length=8, max_bytes=45)
    assert result.nats == pytest.approx(evaluate(model, cut, context_length=8).nats, rel=1e-9)
    assert (result.bytes, result.documents, result.protocol["max_bytes"]) == (45, 4, 45)


def test_documents_of_one_byte_cost_eight_bits(model: ByteLM) -> None:
    corpus = ByteCorpus(np.array([7, 7, 7], np.uint8), np.array([0, 1, 2, 2, 3]), list("abcd"))
    for protocol in ("disjoint", "stateful"):
        assert evaluate(model, corpus, protocol, 8).bits_per_byte == pytest.approx(8, rel=1e-12)


def test_every_byte_is_reported_once(model: ByteLM, corpus: ByteCorpus) -> None:
    for protocol in ("disjoint", "stateful"):
        seen: list[tuple[int, int]] = []
        evaluate(
            model, corpus, protocol, 8, 2, progress=lambda done, total, seen=seen: seen.append((done, total))
        )
        assert seen[-1] == (sum(LENGTHS), sum(LENGTHS))
        assert sorted(seen) == seen


def test_the_result_names_data_and_weights(model: ByteLM, corpus: ByteCorpus) -> None:
    first = evaluate(model, corpus, context_length=8)
    assert first.data_fingerprint == corpus.fingerprint
    other = MambaByteConfig(d_model=32, n_layer=2, d_state=4).build()
    assert evaluate(other, corpus, context_length=8).weights_fingerprint != first.weights_fingerprint
    assert first.to_dict()["protocol"]["name"] == "disjoint"


def test_the_model_is_left_as_it_was(model: ByteLM, corpus: ByteCorpus) -> None:
    model.train()
    evaluate(model, corpus, context_length=8)
    assert model.training
    model.eval()
    evaluate(model, corpus, context_length=8)
    assert not model.training


def test_bf16_is_near_fp32_and_said(model: ByteLM, corpus: ByteCorpus) -> None:
    result = evaluate(model, corpus, context_length=8, precision="bf16")
    assert result.precision == "bf16"
    # 8 bits of mantissa in logits of size 10
    assert result.nats == pytest.approx(evaluate(model, corpus, context_length=8).nats, rel=2e-2)


@pytest.mark.parametrize(
    "settings",
    [
        {"protocol": "sliding"},
        {"precision": "fp16"},
        {"batch_size": 0},
        {"context_length": 0},
        {"max_bytes": 0},
    ],
)
def test_wrong_settings_are_user_errors(model: ByteLM, corpus: ByteCorpus, settings: dict) -> None:
    with pytest.raises(UserError):
        evaluate(model, corpus, **settings)
