"""Sampling the next byte from logits, one row or many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from mambabyte.config.settings import Settings, setting
from mambabyte.errors import UserError
from mambabyte.generation.utf8 import Utf8Position

NO_PROBABILITIES = (
    "the model gives no probabilities (NaN or infinite logits): its training failed, or its file is damaged; "
    "choose another checkpoint"
)
PENALISED = 64  # bytes back that repetition_penalty looks
_BLOCK = 64  # bytes whose noise is made at once
_VOCABULARY = 256

Array = NDArray[np.floating]


@dataclass
class Sampler(Settings):
    """What the draws follow: repetition penalty, temperature, then top-k, top-p (nucleus sampling, arXiv
    1904.09751) and min-p (arXiv 2407.01082), each on what the one before has left.

    Byte t of a row is drawn with noise that depends on the seed, the row's `sample` and t alone: not on the
    batch, and not on what was drafted. Where `generate` draws on a CUDA device instead, it does so from the
    same probabilities with other noise: a seed gives the same bytes there each time, but not those of a CPU.

    Args:
        temperature: divides the logits; 0 takes the likeliest byte and ignores top_k, top_p, min_p and seed.
        top_k: keep only this many of the likeliest bytes.
        top_p: keep the smallest set of likeliest bytes whose probabilities add up to this.
        min_p: keep only bytes at least this times as likely as the likeliest.
        repetition_penalty: bytes among the last 64 have their logits divided by this if positive and
            multiplied if negative (arXiv 1909.05858, section 4.1).
        valid_utf8: rule out the bytes that would make the text invalid UTF-8; the others' probabilities are
            renormalised. A character that the prompt has begun is completed.
        sample: which of several samples with the same seed.

    Raises:
        UserError: a setting of another type or out of range.
    """

    temperature: float = setting(default=0.8, at_least=0)
    top_k: int | None = setting(default=None, at_least=1, at_most=_VOCABULARY)
    top_p: float | None = setting(default=None, above=0, at_most=1)
    seed: int = setting(default=0, at_least=0, below=2**32)
    min_p: float | None = setting(default=None, at_least=0, at_most=1)
    repetition_penalty: float = setting(default=1.0, at_least=1, at_most=100)
    valid_utf8: bool = False
    sample: int = setting(default=0, at_least=0, below=2**32)

    @property
    def plain(self) -> bool:
        """Whether only temperature, top_k, top_p and seed are set."""
        return self == Sampler(self.temperature, self.top_k, self.top_p, self.seed)

    @property
    def filters(self) -> bool:
        return not (self.top_k is self.top_p is self.min_p is None)


class Draws:
    """The draws of one row: its sampler, and where in its text it is.

    Args:
        read: the end of what the row goes on from.
        length: the bytes to be drawn, if their number is known: with `valid_utf8`, no character is begun that
            would not fit.
    """

    def __init__(self, sampler: Sampler, read: bytes = b"", length: int | None = None) -> None:
        self.sampler = replace(sampler)
        self.position = 0
        self._end = length
        self._recent = read[-PENALISED:]
        self._utf8 = Utf8Position.after(read)
        self._block = -1
        self._block_noise: Array = np.empty((0, _VOCABULARY))

    def ahead(self) -> Draws:
        """The same draws from here on, for a guess at them: what it draws leaves this one where it is."""
        ahead = object.__new__(Draws)  # as copy.copy does, in a fifth of the time
        ahead.__dict__.update(self.__dict__)
        return ahead

    def __call__(self, logits: Array) -> int:
        """The next byte, from logits (256,).

        Raises:
            UserError: they give no probabilities.
        """
        return draw([self], logits[None])[0]

    def probabilities(self, logits: Array) -> Array:
        """What the next draw follows (256,), in float64; with temperature 0, 1 for the likeliest byte."""
        weights = _weights([self], logits[None])[0]
        return weights / weights.sum()

    def push(self, byte: int) -> None:
        """Go on by a byte, whoever chose it."""
        self.position += 1
        if self.sampler.repetition_penalty != 1:
            self._recent = (self._recent + bytes([byte]))[-PENALISED:]
        if self.sampler.valid_utf8:
            self._utf8 = self._utf8.after_byte(byte)

    def noise(self) -> Array:
        """Exponential noise (256,) of the next draw."""
        block, place = divmod(self.position, _BLOCK)
        if block != self._block:
            self._block, self._block_noise = block, _noise(self.sampler.seed, self.sampler.sample, block)
        return self._block_noise[place]

    def constrained(self, logits: Array) -> Array:
        """float64 logits (256,) after the penalty, with -inf for what is ruled out."""
        sampler = self.sampler
        if sampler.repetition_penalty != 1 and self._recent:
            seen = np.unique(np.frombuffer(self._recent, np.uint8))
            penalty, values = sampler.repetition_penalty, logits[seen]
            logits = logits.copy()
            logits[seen] = np.where(values > 0, values / penalty, values * penalty)
        if sampler.valid_utf8:
            left = None if self._end is None else self._end - self.position
            logits = np.where(self._utf8.allowed(left), logits, -np.inf)
        return logits


def draw(rows: Sequence[Draws], logits: Array) -> list[int]:
    """The next byte of each row from logits (B, 256), with which the rows go on.

    It is the byte with the largest weight / noise, which is a draw from the normalised weights: an
    exponential race, the same as adding Gumbel noise to the logits.

    Raises:
        UserError: a row's logits give no probabilities.
    """
    weights = _weights(rows, logits)
    if any(row.sampler.temperature for row in rows):
        weights /= np.stack([row.noise() for row in rows])
    drawn = weights.argmax(1).tolist()
    for row, byte in zip(rows, drawn, strict=True):
        row.push(byte)
    return drawn


def _weights(rows: Sequence[Draws], logits: Array) -> Array:
    """Probabilities (B, 256), not normalised: the likeliest byte has 1."""
    logits = np.asarray(logits, dtype=np.float64)
    _refuse_no_probabilities(logits)
    if any(row.sampler.valid_utf8 or row.sampler.repetition_penalty != 1 for row in rows):
        logits = np.stack([row.constrained(logits[i]) for i, row in enumerate(rows)])
        _refuse_no_probabilities(logits)  # of what may come
    below = logits - logits.max(1, keepdims=True)  # at most 0: exp cannot overflow
    temperatures = np.array([row.sampler.temperature for row in rows])
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        weights = np.exp(below / temperatures[:, None])
    for i, row in enumerate(rows):
        if row.sampler.temperature == 0:
            weights[i] = np.arange(_VOCABULARY) == below[i].argmax()
        elif row.sampler.filters:
            weights[i] = _filtered(weights[i], row.sampler)
    return weights


def _refuse_no_probabilities(logits: Array) -> None:
    if not np.isfinite(logits.max(1)).all():  # the largest of any with a NaN is NaN
        raise UserError(NO_PROBABILITIES)


def _filtered(weights: Array, sampler: Sampler) -> Array:
    order = np.argsort(-weights, kind="stable")
    ranked = weights[order]
    if sampler.top_k is not None:
        ranked[sampler.top_k :] = 0
    if sampler.top_p is not None:
        reached_before = (ranked.cumsum() - ranked) / ranked.sum()
        ranked[reached_before >= sampler.top_p] = 0
    if sampler.min_p is not None:
        ranked[ranked < sampler.min_p] = 0  # the likeliest has 1
    kept = np.zeros_like(weights)
    kept[order] = ranked
    return kept


@lru_cache(maxsize=64)  # shared by a row and the guesses at it
def _noise(seed: int, sample: int, block: int) -> Array:
    """Standard exponential noise (64, 256), above 0."""
    generator = np.random.Generator(np.random.Philox(key=[seed, sample], counter=block * _BLOCK * 256))
    return -np.log1p(-generator.random((_BLOCK, _VOCABULARY))) + np.finfo(np.float64).tiny
