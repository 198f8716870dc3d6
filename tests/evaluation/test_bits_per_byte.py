"""evaluate() against the definition written out as a double loop."""

import math
from collections.abc import Callable
from copy import deepcopy

import numpy as np
import pytest
import torch

from mambabyte.data import ByteCorpus
from mambabyte.errors import UserError
from mambabyte.evaluation import Protocol, evaluate
from mambabyte.evaluation.bits_per_byte import bootstrap_interval
from mambabyte.models import ByteLM, HNetConfig, MambaByteConfig, MegaByteConfig


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
    result = evaluate(model, corpus, Protocol("disjoint", context_length, batch_size=3))
    assert result.nats == pytest.approx(expected, rel=1e-5)  # fp32 logits, computed in other shapes
    assert (result.bytes, result.documents) == (corpus.num_bytes, corpus.num_documents)
    assert result.bits_per_byte == result.nats / result.bytes / math.log(2)


@pytest.mark.parametrize("chunk", [1, 8, 13, 100])
@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_stateful_sees_the_whole_document(
    model: ByteLM, corpus: ByteCorpus, chunk: int, batch_size: int
) -> None:
    expected = by_hand(model, corpus, lambda p: 0)
    result = evaluate(model, corpus, Protocol("stateful", chunk, batch_size=batch_size))
    assert result.nats == pytest.approx(expected, rel=1e-5)
    assert result.bytes == corpus.num_bytes


@pytest.mark.parametrize(("context_length", "stride"), [(8, 4), (8, 3), (13, 1), (5, 5), (100, 50), (1, 1)])
def test_sliding_is_the_double_loop(
    model: ByteLM, corpus: ByteCorpus, context_length: int, stride: int
) -> None:
    # window k begins at byte k * stride; a byte is scored by the first window that reaches it
    def context_of(position: int) -> int:
        return max(0, -(-(position - context_length) // stride)) * stride

    expected = by_hand(model, corpus, context_of)
    result = evaluate(model, corpus, Protocol("sliding", context_length, stride, batch_size=3))
    assert result.nats == pytest.approx(expected, rel=1e-5)
    assert (result.bytes, result.protocol["stride"]) == (corpus.num_bytes, stride)


def test_sliding_by_the_whole_context_is_disjoint_and_half_is_the_default(
    model: ByteLM, corpus: ByteCorpus
) -> None:
    disjoint = evaluate(model, corpus, Protocol("disjoint", 8)).nats
    assert evaluate(model, corpus, Protocol("sliding", 8, stride=8)).nats == disjoint
    halves = [evaluate(model, corpus, Protocol("sliding", 8, stride=stride)).nats for stride in (None, 4)]
    assert halves[0] == halves[1] != disjoint


def test_the_protocols_differ_here(model: ByteLM, corpus: ByteCorpus) -> None:
    # or the tests above could not tell them apart
    figures = [evaluate(model, corpus, Protocol(protocol, 8)).nats for protocol in ("disjoint", "stateful")]
    assert figures[0] != pytest.approx(figures[1], rel=1e-3)


def test_max_bytes_cuts_the_corpus(model: ByteLM, corpus: ByteCorpus) -> None:
    cut = ByteCorpus(corpus.bytes[:45], np.array([0, 1, 3, 43, 45]), list("abcd"))
    result = evaluate(model, corpus, Protocol(context_length=8), max_bytes=45)
    assert result.nats == pytest.approx(evaluate(model, cut, Protocol(context_length=8)).nats, rel=1e-9)
    assert (result.bytes, result.documents, result.protocol["max_bytes"]) == (45, 4, 45)


def test_documents_of_one_byte_cost_eight_bits(model: ByteLM) -> None:
    corpus = ByteCorpus(np.array([7, 7, 7], np.uint8), np.array([0, 1, 2, 2, 3]), list("abcd"))
    for protocol in ("disjoint", "stateful"):
        assert evaluate(model, corpus, Protocol(protocol, 8)).bits_per_byte == pytest.approx(8, rel=1e-12)


def test_every_byte_is_reported_once(model: ByteLM, corpus: ByteCorpus) -> None:
    for protocol in ("disjoint", "stateful"):
        seen: list[tuple[int, int]] = []
        how = Protocol(protocol, 8, batch_size=2)
        evaluate(model, corpus, how, progress=lambda done, total, seen=seen: seen.append((done, total)))
        assert seen[-1] == (corpus.num_bytes, corpus.num_bytes)
        assert sorted(seen) == seen


def test_the_result_names_data_and_weights(model: ByteLM, corpus: ByteCorpus) -> None:
    first = evaluate(model, corpus, Protocol(context_length=8))
    assert first.data_fingerprint == corpus.fingerprint
    other = MambaByteConfig(d_model=32, n_layer=2, d_state=4).build()
    assert (
        evaluate(other, corpus, Protocol(context_length=8)).weights_fingerprint != first.weights_fingerprint
    )
    assert first.to_dict()["protocol"]["name"] == "disjoint"


def test_the_model_is_left_as_it_was(model: ByteLM, corpus: ByteCorpus) -> None:
    model.train()
    evaluate(model, corpus, Protocol(context_length=8))
    assert model.training
    model.eval()
    evaluate(model, corpus, Protocol(context_length=8))
    assert not model.training


def test_bf16_is_near_fp32_and_said(model: ByteLM, corpus: ByteCorpus) -> None:
    result = evaluate(model, corpus, Protocol(context_length=8, precision="bf16"))
    assert result.precision == "bf16"
    # 8 bits of mantissa in logits of size 10
    assert result.nats == pytest.approx(evaluate(model, corpus, Protocol(context_length=8)).nats, rel=2e-2)


@pytest.mark.parametrize(
    "settings",
    [
        {"name": "folding"},
        {"precision": "fp16"},
        {"batch_size": 0},
        {"context_length": 0},
        {"name": "sliding", "stride": 0},
        {"name": "disjoint", "stride": 4},
        {"name": "sliding", "context_length": 8, "stride": 9},
    ],
)
def test_wrong_settings_are_user_errors(settings: dict) -> None:
    with pytest.raises(UserError):
        Protocol(**settings)


def test_no_bytes_at_all_are_a_user_error(model: ByteLM, corpus: ByteCorpus) -> None:
    with pytest.raises(UserError, match="max_bytes must be 1 or more"):
        evaluate(model, corpus, Protocol(), max_bytes=0)


def test_every_document_has_its_own_figure(model: ByteLM, corpus: ByteCorpus) -> None:
    result = evaluate(model, corpus, Protocol("stateful", 8))
    assert [document.name for document in result.per_document] == corpus.names
    assert [document.bytes for document in result.per_document] == np.diff(corpus.offsets).tolist()
    assert result.per_document[0].bits_per_byte == pytest.approx(8, rel=1e-12)  # one byte
    alone = ByteCorpus(corpus.document(2), np.array([0, len(corpus.document(2))]), ["2"])
    # fp32, batches of other shapes
    assert result.per_document[2].bits_per_byte == pytest.approx(
        evaluate(model, alone, Protocol("stateful", 8)).bits_per_byte, rel=1e-5
    )
    bits = sum(document.bytes * document.bits_per_byte for document in result.per_document)
    assert bits / result.bytes == pytest.approx(result.bits_per_byte, rel=1e-12)


def test_the_interval_is_that_of_resampled_documents() -> None:
    draws = np.random.default_rng(1)
    lengths = np.full(400, 1000)
    nats = lengths * math.log(2) * draws.normal(2.0, 0.4, 400)
    low, high = bootstrap_interval(nats, lengths)
    # 1.96 standard errors of the mean of 400 documents, 0.4 / 20 each; a tenth for the sampling of both
    assert (high - low) / 2 == pytest.approx(1.96 * 0.02, rel=0.1)
    assert low < nats.sum() / lengths.sum() / math.log(2) < high
    assert bootstrap_interval(nats[:1], lengths[:1]) is None


def test_an_empty_split_is_reported(model: ByteLM) -> None:
    nothing = ByteCorpus(np.zeros(0, np.uint8), np.array([0, 0]), ["empty"])
    with pytest.raises(UserError, match="no bytes"):
        evaluate(model, nothing, Protocol())


@pytest.mark.parametrize("protocol", ["disjoint", "sliding", "stateful"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_model_without_probabilities_gives_no_figure(
    model: ByteLM, corpus: ByteCorpus, protocol: str, value: float
) -> None:
    broken = deepcopy(model)
    with torch.no_grad():
        broken.lm_head.weight[3, 0] = value
    with pytest.raises(UserError, match="NaN or infinite logits"):
        evaluate(broken, corpus, Protocol(protocol, 8))


def test_another_vocabulary_gives_no_figure(model: ByteLM, corpus: ByteCorpus) -> None:
    other = deepcopy(model)
    other.lm_head = torch.nn.Linear(32, 320, bias=False)
    with pytest.raises(UserError, match="320 symbols"):
        evaluate(other, corpus, Protocol())


def test_a_model_whose_state_grows_cannot_be_stateful(
    model: ByteLM, corpus: ByteCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(model), "recurrent", False)
    with pytest.raises(UserError, match="protocol=disjoint"):
        evaluate(model, corpus, Protocol("stateful"))
    assert evaluate(model, corpus, Protocol("disjoint")).bytes == corpus.num_bytes
    with pytest.raises(UserError, match="that of H-Net grows"):
        evaluate(HNetConfig().build(), corpus, Protocol("stateful"))


def test_windows_beyond_a_models_positions_are_refused_by_their_setting(corpus: ByteCorpus) -> None:
    ones = dict.fromkeys(("n_layer", "n_head", "local_n_layer", "local_n_head"), 1)
    model = MegaByteConfig(d_model=16, local_d_model=16, max_length=16, **ones).build()
    with pytest.raises(UserError, match=r"context_length=32 is more than the 16 .* MegaByte .*=16 or less"):
        evaluate(model, corpus, Protocol(context_length=32))
    assert evaluate(model, corpus, Protocol(context_length=16)).bytes == corpus.num_bytes
    short = ByteCorpus(np.arange(10, dtype=np.uint8), np.array([0, 10]), ["short"])
    assert evaluate(model, short, Protocol(context_length=32)).bytes == 10
