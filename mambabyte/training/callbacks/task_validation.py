"""The accuracy on a task's held-out sequences during training."""

from lightning.pytorch import Trainer

from mambabyte.data.tasks import TaskSequences
from mambabyte.evaluation.task_accuracy import Answers, count_answers
from mambabyte.runs.metrics_csv import ACCURACY
from mambabyte.training.callbacks.step_callback import StepCallback, is_due
from mambabyte.training.callbacks.validation import validation_precision
from mambabyte.training.module import ByteLMModule
from mambabyte.training.settings import TrainSettings


class TaskValidation(StepCallback):
    """Answers some of the sequences that training never sees, the same at every step: as many as there are in
    about ``callbacks.validate_bytes`` bytes, shared among the ranks. The precision is that of `Validation`.

    ``validation_bits_per_byte`` is over the answers alone.
    """

    def __init__(self, settings: TrainSettings) -> None:
        self._settings = settings
        self._found: Answers | None = None

    def columns(self) -> dict[str, float | None]:
        found = self._found
        if found is None:
            return dict.fromkeys(("validation_bits_per_byte", *ACCURACY))
        figures = found.bits_per_answer, found.accuracy, found.sequence_accuracy
        return dict(zip(("validation_bits_per_byte", *ACCURACY), figures, strict=True))

    def on_step(self, trainer: Trainer, module: ByteLMModule, step: int) -> None:
        self._found = None
        settings = self._settings
        if not is_due(step, settings.callbacks.validate_every):
            return
        with module.excluded_from_timing():
            self._found = count_answers(
                module.model,
                self._sequences,
                int(settings.trainer.micro_batch_size),
                precision=validation_precision(settings, module.model.device),
                all_ranks=True,
            )

    @property
    def _sequences(self) -> TaskSequences:
        settings = self._settings
        size = settings.callbacks.validate_bytes
        return settings.data.task_sequences(settings.context_length, max_bytes=size)
