"""Bits per byte by position and by context against evaluate()."""

import math
from pathlib import Path

import numpy as np
import pytest

from mambabyte.data import ByteCorpus
from mambabyte.evaluation import Protocol, evaluate
from mambabyte.evaluation.bits_per_byte import first_documents
from mambabyte.evaluation.protocols import scored_spans
from mambabyte.evaluation.studies.context_curves import contexts, measure_context_curves, plot_context_curves
from mambabyte.models import ByteLM


def test_contexts_go_from_a_sixteenth_to_sixty_four_times() -> None:
    assert contexts(8192, 10**9) == [512 * 2**i for i in range(11)]
    assert contexts(8192, 10**9)[-1] == 524_288
    assert contexts(4, 10) == [1, 2, 4, 8]


def test_each_context_is_a_disjoint_evaluation(model: ByteLM, corpus: ByteCorpus) -> None:
    curves = measure_context_curves(model, first_documents(corpus), 4, Protocol(batch_size=3))
    assert [context for context, _ in curves.by_context] == [1, 2, 4, 8, 16, 32, 64]
    for context, bits in curves.by_context:
        expected = evaluate(model, corpus, Protocol("disjoint", context)).bits_per_byte
        assert bits == pytest.approx(expected, rel=1e-5), context  # fp32, read in chunks of 4


def test_positions_are_octaves_of_the_documents(model: ByteLM, corpus: ByteCorpus) -> None:
    documents = first_documents(corpus)
    nats: dict[int, list[float]] = {1: [math.log(256)] * len(documents)}
    for batch in scored_spans(model, documents, Protocol("stateful", 1000, batch_size=1)):
        for span in batch:
            for position, value in enumerate(span.nats, span.start + 1):
                nats.setdefault(2 ** int(math.log2(position)), []).append(value)
    curves = measure_context_curves(model, documents, 4, Protocol(batch_size=3))
    expected = {octave: np.mean(values) / math.log(2) for octave, values in nats.items()}
    assert dict(curves.by_position) == pytest.approx(expected, rel=1e-5)


def test_a_model_whose_state_grows_is_measured_up_to_its_training_length(
    model: ByteLM, corpus: ByteCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(model), "recurrent", False)
    curves = measure_context_curves(model, first_documents(corpus), 16, Protocol(batch_size=3))
    assert [context for context, _ in curves.by_context] == [1, 2, 4, 8, 16]


def test_the_plot_is_a_picture(model: ByteLM, corpus: ByteCorpus, tmp_path: Path) -> None:
    path = tmp_path / "new" / "lengths.png"
    curves = measure_context_curves(model, first_documents(corpus), 8, Protocol())
    plot_context_curves(curves, "title", path)
    assert path.read_bytes().startswith(b"\x89PNG")
