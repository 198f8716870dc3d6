"""Measuring models: bits per byte under a named protocol, and compressors on the same bytes."""

from mambabyte.evaluation.bits_per_byte import BitsPerByte, evaluate
from mambabyte.evaluation.protocols import Protocol
from mambabyte.evaluation.resume import SavedProgress
from mambabyte.evaluation.studies.compressors import compressor_bits_per_byte

__all__ = ["BitsPerByte", "Protocol", "SavedProgress", "compressor_bits_per_byte", "evaluate"]
