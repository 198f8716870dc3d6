"""Generation: bytes one at a time from a ByteLM, and their display as text."""

from mambabyte.generation.generator import generate
from mambabyte.generation.sampler import Sampler
from mambabyte.generation.utf8 import decode_stream

__all__ = ["Sampler", "decode_stream", "generate"]
