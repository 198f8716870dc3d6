"""Generating bytes with a ByteLM: prompts, sampling, batches of rows, and the bytes as text."""

from mambabyte.generation.batch import Batch, Drawn, Row
from mambabyte.generation.context import Context, load_context, read, read_pieces, save_context
from mambabyte.generation.generator import generate
from mambabyte.generation.sampler import Sampler
from mambabyte.generation.stepping import check_weights
from mambabyte.generation.utf8 import decode_stream

__all__ = [
    "Batch",
    "Context",
    "Drawn",
    "Row",
    "Sampler",
    "check_weights",
    "decode_stream",
    "generate",
    "load_context",
    "read",
    "read_pieces",
    "save_context",
]
