"""The sample that is validated on during training."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mambabyte.data import ByteCorpus
from mambabyte.evaluation import Protocol, evaluate
from mambabyte.evaluation.protocols import FIRST_BYTE_NATS, scored_spans
from mambabyte.models import ByteLMConfig, LSTMConfig
from mambabyte.runs.metrics_csv import is_of_some_runs
from mambabyte.training.callbacks import validation
from mambabyte.training.callbacks.validation import Validation, spread_windows
from mambabyte.training.module import ByteLMModule
from mambabyte.training.settings import TrainSettings
from tests.models.every_model import MODELS

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
    windows, _, begin = spread_windows(corpus, 16, corpus.num_bytes)
    first_bytes = int(begin.sum())
    scored = first_bytes + sum(len(window) - 1 for window in windows)
    nats = sum(span.nats.sum() for batch in scored_spans(model, windows, protocol) for span in batch)
    expected = evaluate(model, corpus, protocol)
    assert scored == expected.bytes
    assert nats + first_bytes * FIRST_BYTE_NATS == pytest.approx(expected.nats, rel=1e-6)


@pytest.mark.parametrize("num_bytes", [1, 50, 100, 200, 400])
def test_it_has_about_as_many_bytes_as_asked_for(num_bytes: int, corpus: ByteCorpus) -> None:
    windows, _, begin = spread_windows(corpus, 16, num_bytes)
    first_bytes = int(begin.sum())
    assert abs(first_bytes + sum(len(window) - 1 for window in windows) - num_bytes) <= 2 * 16


def test_it_is_spread_over_all_documents() -> None:
    corpus = corpus_of(bytes(1000), *(bytes([number]) * 100 for number in range(1, 41)))
    windows, documents, _ = spread_windows(corpus, 10, 2500)
    documents = documents.tolist()
    assert documents == [int(window[0]) for window in windows]
    assert set(documents) == set(range(41))
    assert abs(documents.count(0) - len(windows) / 5) <= 1, "a fifth of the bytes"
    again, _, _ = spread_windows(corpus, 10, 2500)
    assert all(np.array_equal(one, other) for one, other in zip(windows, again, strict=True))


def test_one_file_of_noise_does_not_stand_for_a_folder_of_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    class Knows(torch.nn.Module):
        """Is sure that every byte is an "a"."""

        config = ByteLMConfig()
        device = torch.device("cpu")

        def forward(self, bytes: torch.Tensor) -> torch.Tensor:
            logits = torch.zeros(*bytes.shape, 256)
            logits[..., ord("a")] = 20.0
            return logits

    class Module:
        model = Knows()

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


@pytest.mark.parametrize("num_bytes", [20, 200, 400], ids=["fewer windows than ranks", "some", "all"])
@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_the_ranks_share_the_windows_and_get_the_figure_of_one(
    ranks: int, num_bytes: int, corpus: ByteCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = LSTMConfig(d_model=8, n_layer=1).build()
    settings = TrainSettings.compose(
        "experiment=tiny", f"callbacks.validate_bytes={num_bytes}", "context_length=16"
    )
    alone = Validation(settings, corpus)._measure(model)
    passes: list[torch.Tensor] = []
    model.register_forward_hook(lambda module, inputs, output: passes.append(inputs[0]))
    sums: list[np.ndarray] = []
    calls = []
    for rank in range(ranks):
        monkeypatch.setattr(validation, "rank_and_count", lambda rank=rank: (rank, ranks))
        monkeypatch.setattr(
            validation, "sum_over_ranks", lambda own, device: sums.append(own) or np.ones((1, 2))
        )
        passes.clear()
        own = Validation(settings, corpus)._measure(model) if rank == 0 or ranks > 1 else None
        calls.append(len(passes))
    assert len(set(calls)) == 1, "under FSDP the ranks work together in each pass"
    if ranks == 1:
        assert own == alone
        return
    nats, scored = np.sum(sums, axis=0)[0]
    windows, _, begin = spread_windows(corpus, 16, num_bytes)
    first_bytes = int(begin.sum())
    assert scored == first_bytes + sum(len(window) - 1 for window in windows)
    # the windows are batched in another way, and their fp32 logits are rounded
    assert nats / scored / math.log(2) == pytest.approx(alone[0], rel=1e-6)


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_model_of_chunks_says_how_many_bytes_they_have(
    ranks: int, corpus: ByteCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = TrainSettings.compose(
        "experiment=tiny", "context_length=16", "trainer.micro_batch_size=2", "callbacks.validate_every=2"
    )
    torch.manual_seed(0)
    module = ByteLMModule(replace(settings, model=MODELS["hnet-2-stages"]), {})
    monkeypatch.setattr(validation, "rank_and_count", lambda: (1 % ranks, ranks))
    monkeypatch.setattr(validation, "sum_over_ranks", lambda own, device: own)
    measured = Validation(module._settings, corpus)
    trainer: Any = SimpleNamespace(
        global_step=0, is_global_zero=True, strategy=SimpleNamespace(root_device=torch.device("cpu"))
    )
    measured.on_train_start(trainer, module)
    names = ["bytes_per_chunk/1", "bytes_per_chunk/2"]
    assert list(measured.columns())[-2:] == names and all(map(is_of_some_runs, names))
    if ranks == 1:  # of three, a rank would wait for the others' nats
        measured.on_step(trainer, module, 2)
        assert module.model.training
        sizes = [measured.columns()[name] for name in names]
    else:
        sizes = measured._measure_chunks(module.model)
    windows = [each for each in spread_windows(corpus, 16, 10**6)[0] if len(each) == 17]
    rates = module.model.chunk_rates(torch.from_numpy(np.stack(windows[1 % ranks :: ranks][:2])))
    assert sizes == pytest.approx([1 / rate for rate in rates])
    measured.on_step(trainer, module, 3)
    assert [measured.columns()[name] for name in names] == [None, None]


@pytest.mark.parametrize(
    ("device", "overrides", "expected"),
    [
        ("cuda", ["trainer.precision=bf16"], "bf16"),
        ("cuda", ["trainer.precision=fp32"], "fp32"),
        ("cpu", ["trainer.precision=bf16"], "fp32"),
        (
            "cpu",
            ["trainer.precision=bf16", "trainer=fsdp", "trainer.devices=2", "trainer.num_nodes=1"],
            "bf16",
        ),
        ("cpu", ["trainer.precision=bf16", "trainer.strategy=fsdp", "trainer.devices=1"], "fp32"),
    ],
    ids=["gpu", "gpu in fp32", "cpu", "fsdp", "fsdp of one"],
)
def test_its_precision(device: str, overrides: list[str], expected: str, corpus: ByteCorpus) -> None:
    settings = TrainSettings.compose("experiment=tiny", *overrides)
    assert Validation(settings, corpus)._precision(torch.device(device)) == expected
