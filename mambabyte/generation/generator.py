"""Continuing a prompt byte by byte."""

import logging
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from mambabyte.errors import UserError
from mambabyte.generation.sampler import NO_PROBABILITIES, Sampler
from mambabyte.generation.stepping import check_weights
from mambabyte.models import ByteLM, MambaByte
from mambabyte.models.byte_lm import State
from mambabyte.ops.step import step_backend

# A model needs at least one byte to predict the next from; the start of a line is the most neutral choice.
_EMPTY_PROMPT = b"\n"
_log = logging.getLogger("mambabyte")


@torch.no_grad()
def generate(
    model: ByteLM, prompt: bytes, num_bytes: int, sampler: Sampler, weights: str = "fp32"
) -> Iterator[int]:
    """Yield ``num_bytes`` bytes that continue ``prompt``, each as soon as it is sampled; a MambaByte model on
    CUDA, with Triton, draws them there, and they arrive some at a time.

    The state is carried from byte to byte, so that time per byte and memory do not grow with the length.
    With an empty prompt, the text follows a line feed that is not part of the output.

    Args:
        weights: ``fp32``; or ``bf16`` or, on a CPU, ``int8``, which a MambaByte model reads faster: its
            linear layers are rounded for every byte after the prompt, which is read with the weights as they
            are.

    Raises:
        UserError: such weights are not to be had for this model here, or the model gives no probabilities.
    """
    if num_bytes < 1:
        return
    mamba = model if isinstance(model, MambaByte) else None
    backend = "reference" if mamba is None else step_backend(mamba.lm_head.weight)
    check_weights(weights, backend)
    was_training = model.training
    model.eval()
    try:
        context = torch.tensor([list(prompt or _EMPTY_PROMPT)], dtype=torch.long, device=model.device)
        all_logits, state = model.prefill(context)
        logits = all_logits[:, -1]
        if mamba is not None and backend == "triton":
            chunks = _drawn(mamba, state, logits, num_bytes, sampler, weights)
            if chunks is not None:
                yield from _checked(chunks)
                return
        step = _stepper(model, state)
        if mamba is not None and backend == "cpu":
            step = mamba.stepper(state, weights)
        for left in reversed(range(num_bytes)):
            byte = sampler(logits[0])
            yield byte
            if left:
                logits = step(torch.tensor([byte], device=model.device))
    finally:
        model.train(was_training)


def _drawn(
    model: MambaByte, state: State, logits: Tensor, num_bytes: int, sampler: Sampler, weights: str
) -> Iterator[Tensor] | None:
    """What `TritonDrawing.chunks` yields; None, with a line that says so, if its kernels fail here.

    Raises:
        UserError: they fail, and nothing else reads such weights.
    """
    settings = sampler.temperature, sampler.top_k, sampler.top_p, sampler.seed
    try:
        return model.drawing(state, logits, *settings, weights).chunks(num_bytes)
    except Exception as fault:  # a compiler, a driver or a full device may raise anything
        reason = (str(fault).splitlines() or [type(fault).__name__])[0]
        if weights != "fp32":
            raise UserError(f"weights={weights} cannot be used here ({reason}): use weights=fp32") from fault
        _log.warning("generating many times slower, as the CUDA graph of a step failed: %s", reason)
        return None


def _checked(chunks: Iterator[Tensor]) -> Iterator[int]:
    for chunk in chunks:
        for byte in chunk[:, 0].tolist():
            if byte < 0:
                raise UserError(NO_PROBABILITIES)
            yield byte


def _stepper(model: ByteLM, state: State) -> Callable[[Tensor], Tensor]:
    """The model's own steps, from a state on."""

    def step(byte: Tensor) -> Tensor:
        nonlocal state
        logits, state = model.step(byte, state)
        return logits

    return step
