"""The model's own heads for the bytes after the next one as the drafter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mambabyte.errors import UserError
from mambabyte.generation.sampler import Draws
from mambabyte.generation.speculative.drafter import KINDS_OF_DRAWS, Guess, drawn_guess
from mambabyte.models import ByteLM


class HeadsDrafter:
    """Guesses with the further heads of the model that it drafts for, as Medusa (arXiv 2401.10774) and
    EvaByte do: at no step of the model, and as many bytes as there are further heads.

    The heads read what the model has computed for the last byte that it has read of a row. The byte after
    that is drawn by then; the heads are of the bytes after it. Each draws with the noise that the model will.
    A row that the model has read nothing of since it was appended has no guess.

    Raises:
        UserError: the model has no further heads.
    """

    def __init__(self, model: ByteLM) -> None:
        if model.further_heads is None:
            raise UserError(
                "draft=heads guesses with a model's heads for the bytes after the next one, which this model "
                "has not: train one with model.prediction_heads=4, or take draft=ngram"
            )
        self.model = model
        self._hidden: Tensor | None = None
        self._places: list[int | None] = []  # of each row in `_hidden`

    def append(self, text: bytes, rows: int) -> None:
        self._places += [None] * rows

    def select(self, rows: Sequence[int]) -> None:
        self._places = [self._places[row] for row in rows]

    def push(self, texts: Sequence[bytes]) -> None:
        """What the model has computed for them says it all."""

    def see(self, hidden: Tensor) -> None:
        """What the model's heads read (B, d) at the last byte of each row that the model has read."""
        self._hidden, self._places = hidden, list(range(len(hidden)))

    @torch.no_grad()
    def guesses(self, draws: Sequence[Draws]) -> Iterator[list[Guess | None]]:
        known = [(row, place) for row, place in enumerate(self._places) if place is not None]
        if self._hidden is None or not known:
            return
        hidden = self._hidden[[place for _, place in known]]
        logits = self.model.further_logits(hidden).float()
        if not logits.isfinite().all():
            return
        for head, its in enumerate(logits.transpose(0, 1).cpu().numpy()):
            guesses: list[Guess | None] = [None] * len(self._places)
            for (row, _), logits_of_row in zip(known, its, strict=True):
                byte, kind = drawn_guess(draws[row], logits_of_row)
                guesses[row] = Guess(byte, head * KINDS_OF_DRAWS + kind)
            yield guesses
