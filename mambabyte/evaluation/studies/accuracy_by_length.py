"""The accuracy on a task's sequences that are shorter and longer than those of training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mambabyte.data.tasks import TaskSequences
from mambabyte.errors import UserError
from mambabyte.evaluation.studies import Study, write_picture
from mambabyte.evaluation.task_accuracy import CHUNK_LENGTH, Answers, count_answers
from mambabyte.models import ByteLM
from mambabyte.runtime.precision import PrecisionName
from mambabyte.runtime.progress import ProgressCallback

SHORTEST = 64
FEWEST, MOST = 64, 1024  # sequences of each length
_RECURRENT_FURTHEST, _FURTHEST = 512, 64  # times the training length: 2^17 and 2^14 after training at 256


@dataclass(frozen=True)
class LengthAccuracy:
    """What the model answered to ``sequences`` sequences of ``length`` bytes."""

    length: int
    sequences: int
    accuracy: float
    sequence_accuracy: float


def accuracy_by_length_study(
    model: ByteLM,
    sequences: TaskSequences,
    training_length: int,
    furthest: int | None,
    batch_size: int,
    precision: PrecisionName,
    plot: Path,
    progress: Callable[[str], ProgressCallback],
) -> Study:
    """Measure the curve and draw it to ``plot``.

    Args:
        sequences: of the task and the split; as many bytes of each length are measured, but between 64 and
            1,024 sequences.
        furthest: the longest length; by default 512 times ``training_length`` for a recurrent model, whose
            memory does not grow, and 64 times it for any other.

    Raises:
        UserError: ``furthest`` leaves no length, or the model cannot read the shortest.
    """
    shortest = max(sequences.task.shortest, min(SHORTEST, training_length))
    if furthest is None:
        furthest = (_RECURRENT_FURTHEST if model.recurrent else _FURTHEST) * training_length
    chosen = lengths(shortest, furthest, training_length)
    if not chosen:
        raise UserError(
            f"furthest={furthest:,} is less than the shortest sequences measured, of {shortest:,} bytes: "
            "raise it"
        )
    size = sequences.count * sequences.context_length
    found: list[LengthAccuracy] = []
    reason = None
    for length in chosen:
        count = min(MOST, max(FEWEST, size // length))
        part = TaskSequences(sequences.task, length, count, sequences.split)
        try:
            answers = count_answers(
                model, part, batch_size, CHUNK_LENGTH, precision, progress(f"length {length:,}")
            )
        except UserError as refusal:  # a model that reads no more bytes than it was built for
            if not found:
                raise
            reason = str(refusal)
            break
        found.append(_of(length, answers))
    chance = 1 / sequences.task.contents
    values = {
        "training_length": training_length,
        "chance": chance,
        "by_length": [asdict(each) for each in found],
        "stopped": reason,
    }
    fault = write_picture(plot, lambda: plot_accuracy_by_length({"": found}, training_length, chance, plot))
    lines = [f"answers right, by length (trained at {training_length:,}; guessing: {100 * chance:.2f} %):"]
    lines += [
        f"  {each.length:12,}{100 * each.accuracy:10.2f} %   in {each.sequences:,} sequences"
        for each in found
    ]
    lines += [f"  no longer ones: {reason}"] if reason else []
    if fault:
        return Study(values | {"plot": None, "reason": fault}, lines, fault)
    return Study(values | {"plot": str(plot)}, [*lines, f"plot: {plot}"])


def lengths(shortest: int, furthest: int, training_length: int) -> list[int]:
    """The powers of two from ``shortest`` to ``furthest`` with the training length among them, ascending."""
    powers = {2**power for power in range(furthest.bit_length())}
    return sorted(length for length in powers | {training_length} if shortest <= length <= furthest)


def _of(length: int, answers: Answers) -> LengthAccuracy:
    return LengthAccuracy(length, answers.sequences, answers.accuracy, answers.sequence_accuracy)


def plot_accuracy_by_length(
    curves: dict[str, Sequence[LengthAccuracy]], training_length: int, chance: float, path: Path
) -> None:
    """Draw the accuracy of each named model over a logarithmic axis, with the training length and the
    accuracy of guessing."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for name, curve in curves.items():
        points = [(each.length, 100 * each.accuracy) for each in curve]
        axes.plot(*zip(*points, strict=True), "o-", label=name or "answers right")
    axes.axvline(training_length, color="grey", linestyle="--", label="training length")
    axes.axhline(100 * chance, color="grey", linestyle=":", label=f"guessing ({100 * chance:.1f} %)")
    axes.set_xscale("log", base=2)
    axes.set(xlabel="bytes in a sequence", ylabel="answers right, in %", ylim=(-3, 103))
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
