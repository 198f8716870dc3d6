"""Continuing a prompt byte by byte."""

from collections.abc import Iterator

import torch

from mambabyte.generation.sampler import Sampler
from mambabyte.models import ByteLM

# A model needs at least one byte to predict the next from; the start of a line is the most neutral choice.
_EMPTY_PROMPT = b"\n"


@torch.no_grad()
def generate(model: ByteLM, prompt: bytes, num_bytes: int, sampler: Sampler) -> Iterator[int]:
    """Yield ``num_bytes`` bytes that continue ``prompt``, each as soon as it is sampled.

    The state is carried from byte to byte, so that time per byte and memory do not grow with the length.
    With an empty prompt, the text follows a line feed that is not part of the output.
    """
    if num_bytes < 1:
        return
    device = model.device
    was_training = model.training
    model.eval()
    try:
        context = torch.tensor([list(prompt or _EMPTY_PROMPT)], dtype=torch.long, device=device)
        all_logits, state = model.prefill(context)
        logits = all_logits[:, -1]
        for left in reversed(range(num_bytes)):
            byte = sampler(logits[0])
            yield byte
            if left:
                logits, state = model.step(torch.tensor([byte], device=device), state)
    finally:
        model.train(was_training)
