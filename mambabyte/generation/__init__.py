"""Generating bytes one at a time with a ByteLM, and decoding them as text."""

from mambabyte.generation.generator import decode_stream, generate
from mambabyte.generation.sampler import Sampler

__all__ = ["Sampler", "decode_stream", "generate"]
