"""Speculative decoding: several bytes guessed, verified in one window of the model, and corrected."""

from mambabyte.generation.speculative.drafter import Drafter, Guess
from mambabyte.generation.speculative.drafting import TOP_BETA, Drafting, Statistics
from mambabyte.generation.speculative.heads import HeadsDrafter
from mambabyte.generation.speculative.lengths import AdaptiveLengths, FixedLengths
from mambabyte.generation.speculative.model import ModelDrafter
from mambabyte.generation.speculative.ngram import NgramDrafter
from mambabyte.generation.speculative.settings import drafting_from

__all__ = [
    "TOP_BETA",
    "AdaptiveLengths",
    "Drafter",
    "Drafting",
    "FixedLengths",
    "Guess",
    "HeadsDrafter",
    "ModelDrafter",
    "NgramDrafter",
    "Statistics",
    "drafting_from",
]
