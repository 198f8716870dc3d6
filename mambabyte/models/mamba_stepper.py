"""Rows of a MambaByte that go on from a state by the fused CPU step."""

from __future__ import annotations

from torch import Tensor

from mambabyte.models.byte_lm import ByteLM, State
from mambabyte.ops.step import MambaStepper, PreparedMamba


class MambaByteStepper(MambaStepper):
    """Takes bytes as models do, and refuses others as they do (UserError)."""

    def __init__(
        self, model: ByteLM, weights: PreparedMamba, state: State, keep_hidden: bool = False
    ) -> None:
        self._model = model
        super().__init__(weights, state, keep_hidden)

    def __call__(self, byte: Tensor | bytes) -> Tensor:
        column = self._model.as_column(byte)
        try:
            return super().__call__(column[:, 0])
        except ValueError:  # each byte has no time for a look at its value before
            self._model.as_batch(column)
            raise

    def window(self, bytes: Tensor | bytes) -> Tensor:
        return super().window(self._model.as_batch(bytes))

    def read(self, bytes: Tensor | bytes) -> Tensor:
        return super().read(self._model.as_batch(bytes))
