"""The sample that is validated on during training."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from mambabyte.data import ByteCorpus
from mambabyte.evaluation import Protocol, evaluate
from mambabyte.evaluation.protocols import FIRST_BYTE_NATS, scored_spans
from mambabyte.models import LSTMConfig
from mambabyte.training.callbacks.validation import Validation, spread_windows
from mambabyte.training.settings import TrainSettings

LENGTHS = [0, 1, 2, 16, 17, 18, 33, 100, 3, 250]


def corpus_of(*documents: bytes) -> ByteCorpus:
    offsets = np.cumsum([0, *map(len, documents)])
    text = np.frombuffer(b"".join(documents), np.uint8)
    return ByteCorpus(text, offsets, [f"document {number}" for number in range(len(documents))])


@pytest.fixture
def corpus() -> ByteCorpus:
    draw = np.random.default_rng(0)
    return corpus_of(*(draw.integers(0, 256, length, np.uint8).tobytes() for length in LENGTHS))


def test_of_all_bytes_the_sample_is_the_protocol(corpus: ByteCorpus) -> None:
    torch.manual_seed(0)
    model = LSTMConfig(d_model=8, n_layer=1).build()
    protocol = Protocol("disjoint", 16)
    windows, first_bytes = spread_windows(corpus, 16, corpus.num_bytes)
    scored = first_bytes + sum(len(window) - 1 for window in windows)
    nats = sum(span.nats.sum() for batch in scored_spans(model, windows, protocol) for span in batch)
    expected = evaluate(model, corpus, protocol)
    assert scored == expected.bytes
    assert nats + first_bytes * FIRST_BYTE_NATS == pytest.approx(expected.nats, rel=1e-6)


@pytest.mark.parametrize("num_bytes", [1, 50, 100, 200, 400])
def test_it_has_about_as_many_bytes_as_asked_for(num_bytes: int, corpus: ByteCorpus) -> None:
    windows, first_bytes = spread_windows(corpus, 16, num_bytes)
    assert abs(first_bytes + sum(len(window) - 1 for window in windows) - num_bytes) <= 2 * 16


def test_it_is_spread_over_all_documents() -> None:
    corpus = corpus_of(bytes(1000), *(bytes([number]) * 100 for number in range(1, 41)))
    windows, _ = spread_windows(corpus, 10, 2500)
    documents = [int(window[0]) for window in windows]
    assert set(documents) == set(range(41))
    assert abs(documents.count(0) - len(windows) / 5) <= 1, "a fifth of the bytes"
    again, _ = spread_windows(corpus, 10, 2500)
    assert all(np.array_equal(one, other) for one, other in zip(windows, again, strict=True))


def test_one_file_of_noise_does_not_stand_for_a_folder_of_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    class Knows(torch.nn.Module):
        """Is sure that every byte is an "a"."""

        device = torch.device("cpu")

        def forward(self, bytes: torch.Tensor) -> torch.Tensor:
            logits = torch.zeros(*bytes.shape, 256)
            logits[..., ord("a")] = 20.0
            return logits

    class Module:
        unsharded_model = Knows()

        def excluded_from_timing(self) -> Any:
            return torch.no_grad()

    settings = TrainSettings.compose(
        "experiment=tiny", "callbacks.validate_every=1", "callbacks.validate_bytes=512", "context_length=64"
    )
    noise = np.random.default_rng(0).integers(0, 256, 1000, np.uint8).tobytes()
    validation = Validation(settings, corpus_of(noise, *[b"a" * 1000] * 19))
    validation.on_step(None, Module(), 1)  # type: ignore[arg-type]
    bits = validation.columns()["validation_bits_per_byte"]
    assert bits is not None and bits < 20 / math.log(2) / 10
