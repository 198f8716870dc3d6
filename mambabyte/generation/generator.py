"""Continuing a prompt byte by byte."""

from collections.abc import Iterator

import torch

from mambabyte.generation.sampler import Sampler
from mambabyte.models import ByteLM

# A model predicts the next byte from at least one before it; a line start is the mildest beginning.
_UNSHOWN_START = b"\n"


@torch.no_grad()
def generate(model: ByteLM, prompt: bytes, num_bytes: int, sampler: Sampler) -> Iterator[int]:
    """Yield ``num_bytes`` bytes that continue ``prompt``, each as soon as it is drawn.

    The state is carried from byte to byte: time per byte and memory do not grow with the length.
    An empty prompt starts from a line feed that is not part of the output.
    """
    if num_bytes < 1:
        return
    device = model.device
    was_training = model.training
    model.eval()
    try:
        context = torch.tensor([list(prompt or _UNSHOWN_START)], dtype=torch.long, device=device)
        all_logits, state = model.prefill(context)
        logits = all_logits[0, -1]
        for position in range(num_bytes):
            byte = sampler(logits)
            yield byte
            if position + 1 < num_bytes:
                next_logits, state = model.step(torch.tensor([byte], device=device), state)
                logits = next_logits[0]
    finally:
        model.train(was_training)
