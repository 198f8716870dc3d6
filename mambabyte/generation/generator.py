"""Continuing a prompt byte by byte."""

import logging
from collections.abc import Iterator

import torch
from torch import Tensor

from mambabyte.errors import UserError
from mambabyte.generation.batch import Batch, Row
from mambabyte.generation.context import Context, in_eval_mode, read
from mambabyte.generation.sampler import NO_PROBABILITIES, Sampler
from mambabyte.generation.speculative.drafting import Drafting
from mambabyte.generation.stepping import check_weights
from mambabyte.models import ByteLM, MambaByte
from mambabyte.ops.step import step_backend

_log = logging.getLogger("mambabyte")


@torch.no_grad()
def generate(
    model: ByteLM,
    prompt: bytes,
    num_bytes: int,
    sampler: Sampler,
    weights: str = "fp32",
    context: Context | None = None,
    drafting: Drafting | None = None,
) -> Iterator[int]:
    """Yield ``num_bytes`` bytes that continue ``prompt``, each as soon as it is sampled; a MambaByte model on
    CUDA, with Triton, draws them there, and they arrive some at a time.

    The state is carried from byte to byte: a recurrent model's time per byte and memory do not grow with the
    length. With an empty prompt, the text follows a line feed that is not part of the output.

    Args:
        weights: ``fp32``; or ``bf16`` or, on a CPU, ``int8``, which a MambaByte model reads faster: its
            linear layers are rounded for every byte after the prompt, which is read with the weights as they
            are.
        context: what the model has read before the prompt.
        drafting: guesses, of which several are verified at once: see `Batch`. With it, all bytes are drawn on
            the host.

    Raises:
        UserError: such weights are not to be had for this model here, or the model gives no probabilities.
    """
    if num_bytes < 1:
        return
    check_weights(model, weights)
    with in_eval_mode(model):
        context = read(model, prompt, context)
        if drafting is None and sampler.plain and not sampler.sample and isinstance(model, MambaByte):
            chunks = _drawn_on_device(model, context, num_bytes, sampler, weights)
            if chunks is not None:
                yield from _checked(chunks)
                return
        batch = Batch(model, weights, drafting)
        batch.add(context, [Row(sampler, num_bytes)])
        for drawn in batch:
            yield drawn.byte


def _drawn_on_device(
    model: MambaByte, context: Context, num_bytes: int, sampler: Sampler, weights: str
) -> Iterator[Tensor] | None:
    """What `TritonDrawing.chunks` yields; None where that does not serve, with a line if its kernels fail.

    Raises:
        UserError: they fail, and nothing else reads such weights.
    """
    if step_backend(model.lm_head.weight) != "triton":
        return None
    settings = sampler.temperature, sampler.top_k, sampler.top_p, sampler.seed
    try:
        return model.drawing(context.state, context.logits, *settings, weights).chunks(num_bytes)
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
