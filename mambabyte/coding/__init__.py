"""Lossless compression with a model: the size of the file is the model's bits per byte."""

from mambabyte.coding.coder import Coded, decode, encode
from mambabyte.coding.compression import compress_file, decompress_file
from mambabyte.coding.predictions import MAX_LANES
from mambabyte.coding.proof import Proof, prove

__all__ = ["MAX_LANES", "Coded", "Proof", "compress_file", "decode", "decompress_file", "encode", "prove"]
