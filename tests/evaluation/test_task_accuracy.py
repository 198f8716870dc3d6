"""The accuracy on a task: against counts by hand, in chunks, and for a model that knows every answer."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mambabyte.data import CopyingTask, InductionHeadsTask, SelectiveCopyingTask
from mambabyte.data.tasks import MARKER, NOISE, Task, TaskSequences
from mambabyte.errors import UserError
from mambabyte.evaluation import task_accuracy
from mambabyte.evaluation.studies.accuracy_by_length import accuracy_by_length_study, lengths
from mambabyte.evaluation.task_accuracy import count_answers, evaluate_task
from mambabyte.models import ByteLM, MambaByteConfig, TransformerConfig
from mambabyte.models.hyperparameters import ByteLMConfig


class Rule(ByteLM):
    """Answers by the rule of the tasks, from the bytes before; ``wrong`` shifts what it would answer to the
    sequences whose first answer is ``a``."""

    def __init__(self, wrong: int = 0, most: int = 10**9) -> None:
        super().__init__(ByteLMConfig())
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.wrong, self.most = wrong, most

    def forward(self, bytes: Tensor, state=None, document_start=None) -> Tensor:
        if bytes.shape[1] > self.most:
            raise UserError(f"no more than {self.most} bytes")
        logits = torch.zeros(*bytes.shape, 256)
        for row, line in zip(logits, bytes.tolist(), strict=True):
            marks = [i for i, byte in enumerate(line) if byte == MARKER]
            found = [byte for byte in line if byte not in (NOISE, MARKER)]
            if len(marks) == 2 and marks[0] < len(line) - 2:  # the shape of the induction heads
                marks, found = marks[1:], [line[marks[0] + 1]]
            for place, byte in zip(marks, found, strict=True):
                row[place, byte + self.wrong * (found[0] == ord("a"))] = 20.0
        return logits


TASKS = [CopyingTask(tokens=3), SelectiveCopyingTask(tokens=3), InductionHeadsTask()]
NAMES = [type(task).__name__ for task in TASKS]


@pytest.mark.parametrize("task", TASKS, ids=NAMES)
def test_who_knows_the_rule_is_right_every_time(task: Task) -> None:
    found = evaluate_task(Rule(), TaskSequences(task, 40, 30), batch_size=7)
    assert (found.accuracy, found.sequence_accuracy) == (1.0, 1.0)
    assert (found.documents, found.bytes) == (30, 30 * getattr(task, "tokens", 1))
    assert found.bits_per_byte < 1e-5
    assert found.chance == 1 / (15 if isinstance(task, InductionHeadsTask) else 14)
    assert found.protocol == {"name": "answers", "context_length": 40, "max_bytes": None}


def test_the_counts_are_those_by_hand() -> None:
    """The answers of a rule that is wrong about every sequence whose first byte is an a."""
    task = CopyingTask(tokens=3, vocabulary=5)
    sequences = TaskSequences(task, 10, 50)
    first = [bytes(row[:3].tolist()).decode() for row in sequences.batch(np.arange(50))["bytes"]]
    spoilt = sum(text[0] == "a" for text in first)
    assert 5 < spoilt < 30
    counts = count_answers(Rule(wrong=1), sequences, batch_size=8)
    assert (counts.answers, counts.sequences) == (150, 50)
    assert (counts.right, counts.right_sequences) == (150 - 3 * spoilt, 50 - spoilt)
    assert counts.accuracy == 1 - spoilt / 50 == counts.sequence_accuracy
    # of 256 logits one is 20 and the others 0
    right, wrong = math.log(math.exp(20) + 255) - 20, math.log(math.exp(20) + 255)
    nats = 3 * (spoilt * wrong + (50 - spoilt) * right)
    assert counts.nats == pytest.approx(nats, rel=1e-5)  # float32
    assert counts.bits_per_answer == pytest.approx(nats / 150 / math.log(2), rel=1e-5)


def test_one_wrong_answer_spoils_its_sequence_only(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Rule.forward

    def second_answer_of_the_third_sequence(self, bytes, state=None, document_start=None):
        logits = original(self, bytes)
        logits[2, -2, MARKER] = 30.0
        return logits

    monkeypatch.setattr(Rule, "forward", second_answer_of_the_third_sequence)
    counts = count_answers(Rule(), TaskSequences(SelectiveCopyingTask(tokens=3), 12, 5))
    assert (counts.right, counts.right_sequences) == (14, 4)


@pytest.mark.parametrize(
    "config",
    [MambaByteConfig(d_model=16, n_layer=2, d_state=4), TransformerConfig(d_model=16, n_layer=2, n_head=2)],
    ids=["mamba", "transformer"],
)
def test_chunks_and_batches_change_nothing(config: ByteLMConfig) -> None:
    torch.manual_seed(0)
    model = config.build().double()
    sequences = TaskSequences(SelectiveCopyingTask(tokens=5), 37, 11)
    whole = count_answers(model, sequences, batch_size=11)
    assert whole.nats > 0
    for batch_size, chunk_length in ((3, 7), (4, 36), (1, 1)):
        parts = count_answers(model, sequences, batch_size, chunk_length)
        assert (parts.right, parts.right_sequences) == (whole.right, whole.right_sequences)
        assert parts.nats == pytest.approx(whole.nats, rel=1e-12)  # float64


def test_ranks_count_every_sequence_once_and_run_as_many_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    sequences, batches = TaskSequences(CopyingTask(tokens=3), 10, 10), []
    whole = count_answers(Rule(wrong=1), sequences)
    original = Rule.forward
    monkeypatch.setattr(
        Rule, "forward", lambda self, bytes: batches.append(len(bytes)) or original(self, bytes)
    )
    monkeypatch.setattr(task_accuracy, "sum_over_ranks", lambda sums, device: sums)
    counts = []
    for rank in range(3):
        monkeypatch.setattr(task_accuracy, "rank_and_count", lambda rank=rank: (rank, 3))
        counts.append(count_answers(Rule(wrong=1), sequences, batch_size=3, all_ranks=True))
    assert batches == [3, 1] * 3
    for name in ("answers", "right", "sequences", "right_sequences"):
        assert sum(getattr(each, name) for each in counts) == getattr(whole, name)
    assert sum(each.nats for each in counts) == pytest.approx(whole.nats)


def test_a_long_sequence_is_never_read_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that memory does not grow with the length, except by the model's state."""
    torch.manual_seed(0)
    model, read = MambaByteConfig(d_model=16, n_layer=1, d_state=4).build(), []
    prefill = model.prefill

    def noted(bytes, state=None):
        read.append(tuple(bytes.shape))
        return prefill(bytes, state)

    monkeypatch.setattr(model, "prefill", noted)
    monkeypatch.setattr(model, "forward", None)
    count_answers(model, TaskSequences(InductionHeadsTask(), 1000, 3), 2, chunk_length=400)
    assert read == [(2, 400), (2, 400), (2, 200), (1, 400), (1, 400), (1, 200)]


def test_a_model_without_probabilities_is_refused_and_stays_in_training() -> None:
    model = Rule().train()
    with torch.no_grad():
        model.weight.fill_(math.nan)
    model.forward = lambda bytes: torch.full((*bytes.shape, 256), math.nan) * model.weight
    with pytest.raises(UserError, match="NaN or infinite logits"):
        count_answers(model, TaskSequences(TASKS[0], 12, 3))
    assert model.training


def test_lengths_are_powers_of_two_and_that_of_training() -> None:
    assert lengths(64, 1000, 256) == [64, 128, 256, 512]
    assert lengths(64, 512, 72) == [64, 72, 128, 256, 512]
    assert lengths(64, 2**17, 256)[-1] == 2**17


def test_the_accuracy_by_length_is_that_of_sequences_of_that_length(tmp_path: Path) -> None:
    plot = tmp_path / "new" / "lengths.png"
    sequences = TaskSequences(InductionHeadsTask(), 64, 100)

    def study(model: ByteLM, furthest: int | None, training_length: int = 64):
        return accuracy_by_length_study(
            *(
                model,
                sequences,
                training_length,
                furthest,
                32,
                "fp32",
                plot,
                lambda label: lambda done, total: None,
            )
        )

    found = study(Rule(wrong=1), 256)
    assert [each["length"] for each in found.values["by_length"]] == [64, 128, 256]
    assert [each["sequences"] for each in found.values["by_length"]] == [100, 64, 64]
    for each in found.values["by_length"]:
        part = TaskSequences(InductionHeadsTask(), each["length"], each["sequences"])
        assert each["accuracy"] == count_answers(Rule(wrong=1), part).accuracy < 1
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert found.lines[-1] == f"plot: {plot}"
    stopped = study(Rule(most=200), 512)
    assert [each["length"] for each in stopped.values["by_length"]] == [64, 128]
    assert stopped.values["stopped"] == "no more than 200 bytes"
    with pytest.raises(UserError, match="no more than 10 bytes"):
        study(Rule(most=10), None)
    short = study(Rule(), 70, training_length=24).values["by_length"]
    assert [each["length"] for each in short] == [24, 32, 64], "from the training length on"
    with pytest.raises(UserError, match="furthest=23 is less than the shortest sequences measured, of 24 b"):
        study(Rule(), 23, training_length=24)
