"""Generating bytes one at a time with a ByteLM, and decoding them as text."""

from mambabyte.generation.generator import generate
from mambabyte.generation.sampler import Sampler
from mambabyte.generation.utf8 import decode_stream

__all__ = ["Sampler", "decode_stream", "generate"]
