"""Activation checkpointing: a block keeps its input only, and computes its inside again in backward."""

from functools import partial

from torch.utils.checkpoint import checkpoint

from mambabyte.models import ByteLM


def recompute_blocks(model: ByteLM) -> None:
    """Make every block of ``model`` forget its activations until backward needs them.

    The gradients stay what they are, and every block's forward runs twice. The memory of activations falls to
    the blocks' inputs and one block's inside.
    """
    for block in model.blocks():
        # A block draws no random numbers, so that there is no generator to set back.
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
