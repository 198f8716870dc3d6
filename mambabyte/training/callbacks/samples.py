"""Samples of text during training."""

from lightning.pytorch import Trainer

from mambabyte.generation import Sampler, decode_stream, generate
from mambabyte.models import ByteLM
from mambabyte.runtime.terminal import visible
from mambabyte.training.callbacks.step_callback import StepCallback, is_due
from mambabyte.training.module import ByteLMModule
from mambabyte.training.settings import TrainSettings


class Samples(StepCallback):
    """Appends a sample, always from the same prompt and seed, to ``samples.txt``; control characters are
    symbols there, for people read it in terminals."""

    def __init__(self, settings: TrainSettings) -> None:
        self._path = settings.run_dir / "samples.txt"
        self._settings = settings.callbacks

    def on_step(self, trainer: Trainer, module: ByteLMModule, step: int) -> None:
        if not is_due(step, self._settings.sample_every):
            return
        with module.excluded_from_timing():
            if (model := module.unsharded_model) is None:
                return
            prompt = self._settings.sample_prompt
            text = sample_text(model, prompt, self._settings.sample_bytes)
            with self._path.open("a", encoding="utf-8", newline="") as file:
                file.write(f"--- step {step}\n{visible(prompt + text)}\n")


def sample_text(model: ByteLM, prompt: str, num_bytes: int) -> str:
    """``num_bytes`` that continue ``prompt``, drawn with the default sampler, as text."""
    stream = generate(model, prompt.encode("utf-8", "surrogateescape"), num_bytes, Sampler())
    return "".join(decode_stream(stream))
