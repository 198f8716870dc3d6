"""Continuing a prompt byte by byte."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from mambabyte.errors import UserError
from mambabyte.generation.sampler import Sampler
from mambabyte.models import ByteLM, MambaByte
from mambabyte.models.byte_lm import State
from mambabyte.ops.step import STORAGE, serves_mamba_step

# A model needs at least one byte to predict the next from; the start of a line is the most neutral choice.
_EMPTY_PROMPT = b"\n"


@torch.no_grad()
def generate(
    model: ByteLM, prompt: bytes, num_bytes: int, sampler: Sampler, weights: str = "fp32"
) -> Iterator[int]:
    """Yield ``num_bytes`` bytes that continue ``prompt``, each as soon as it is sampled.

    The state is carried from byte to byte, so that time per byte and memory do not grow with the length.
    With an empty prompt, the text follows a line feed that is not part of the output.

    Args:
        weights: ``fp32``; or ``bf16`` or ``int8``, which a MambaByte model on a CPU reads faster: its linear
            layers are rounded for every byte after the prompt, which is read with the weights as they are.

    Raises:
        UserError: such weights are not to be had for this model here, or the model gives no probabilities.
    """
    if num_bytes < 1:
        return
    fused = model if isinstance(model, MambaByte) and serves_mamba_step(model.lm_head.weight) else None
    if weights not in STORAGE:
        raise UserError(f"weights must be {', '.join(STORAGE[:-1])} or {STORAGE[-1]}, not {weights}")
    if weights != "fp32" and fused is None:
        raise UserError(
            f"weights={weights} needs a MambaByte model in fp32 on a CPU, and compiled kernels (see "
            "mambabyte doctor); use weights=fp32"
        )
    device = model.device
    was_training = model.training
    model.eval()
    try:
        context = torch.tensor([list(prompt or _EMPTY_PROMPT)], dtype=torch.long, device=device)
        all_logits, state = model.prefill(context)
        logits = all_logits[:, -1]
        step = _stepper(model, state) if fused is None else fused.stepper(state, weights)
        for left in reversed(range(num_bytes)):
            byte = sampler(logits[0])
            yield byte
            if left:
                logits = step(torch.tensor([byte], device=device))
    finally:
        model.train(was_training)


def _stepper(model: ByteLM, state: State) -> Callable[[Tensor], Tensor]:
    """The model's own steps, from a state on."""

    def step(byte: Tensor) -> Tensor:
        nonlocal state
        logits, state = model.step(byte, state)
        return logits

    return step
