"""Activation checkpointing: a block keeps only its input and recomputes its activations in backward."""

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from mambabyte.models import ByteLM


def checkpoint_activations(model: ByteLM) -> None:
    """Make every block of ``model`` recompute its activations in backward.

    Gradients do not change and every block's forward runs twice. Activation memory falls to the blocks'
    inputs plus the activations of one block.
    """
    for block in model.blocks():
        # Only the dropout of adapters draws random numbers; without it there is no generator to restore.
        draws = any(isinstance(module, nn.Dropout) and module.p for module in block.modules())
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=draws)
