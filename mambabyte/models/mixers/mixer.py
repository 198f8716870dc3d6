"""The contract of a sequence mixer, which a `MixerStack` builds its layers from."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from mambabyte.config.settings import TargetSettings, suggestion
from mambabyte.errors import UserError

MixerState = tuple[Tensor, ...]


@dataclass(frozen=True)
class Place:
    """Where a mixer stands: `width` channels in the layer numbered `layer` of `n_layer`, in a residual stream
    of `d_model` channels."""

    width: int
    d_model: int
    layer: int
    n_layer: int


class SequenceMixer(nn.Module):
    """A causal map of sequences (B, L, width) -> (B, L, width) with a state.

    Attributes:
        recurrent: the state's size does not grow with the positions read.
        resets: `forward` obeys `document_start`. The others are never given it: the stack runs each document
            of a packed window on its own, as `DocumentwiseByteLM` does.
    """

    recurrent: ClassVar[bool] = True
    resets: bool = False

    @property
    def output_projection(self) -> nn.Linear | None:
        """The linear layer, without bias, that the output comes from. After a mixer without one, a plain
        block has its own."""
        return getattr(self, "out_proj", None)

    @abstractmethod
    def forward(
        self, x: Tensor, state: MixerState | None, document_start: Tensor | None = None
    ) -> tuple[Tensor, MixerState | None]:
        """The output for x (B, L, width), and the state after it, which is None if none was given.

        Args:
            state: the state after the positions before; None at a beginning.
            document_start: (B, L) boolean; a marked position and those after it see nothing before it.
        """

    @abstractmethod
    def initial_state(self, batch_size: int) -> MixerState:
        """The state before the first position: tensors (B, ...). Dimensions that grow are 0 here."""

    @abstractmethod
    def flops(self, context_length: int) -> float:
        """Operations per position in a window of `context_length`, multiply-adds counted as two."""


@dataclass
class MixerConfig(TargetSettings):
    """The hyperparameters of a mixer: the YAML of the group `mixer` fills them.

    A subclass is a dataclass that sets ``mixer`` to the class it configures, which takes (config, place).
    """

    section: ClassVar[str] = "model.mixer"
    mixer: ClassVar[type]  # of SequenceMixer

    def build(self, place: Place) -> SequenceMixer:
        """The mixer, freshly initialised from PyTorch's global generator."""
        return self.mixer(self, place)

    @property
    def width_unit(self) -> int:
        """A number of which the widths that a budget tries are multiples."""
        return 1

    def check(self, width: int) -> None:
        """Raise UserError if there is no such mixer of `width` channels."""

    @classmethod
    def target(cls) -> str:
        return f"mambabyte.models.mixers.{cls.__name__}"

    @classmethod
    def from_settings(cls, values: Any, where: str) -> TargetSettings:
        """As `TargetSettings` has it, for this package's mixers alone: a checkpoint, which a stranger may
        have written, names one, and what it names is imported."""
        from mambabyte.models.mixers import MIXERS

        if isinstance(values, cls):
            return values
        if not isinstance(values, Mapping):
            raise UserError(f"{where} is a section that mixer=NAME fills, of {', '.join(MIXERS.values())}")
        target = values.get("_target_")
        known = {f"mambabyte.models.mixers.{name}Config" for name in MIXERS}
        if isinstance(target, str) and target not in known:
            raise UserError(f"{where}._target_={target} is no mixer{suggestion(target, known)}")
        return super().from_settings(values, where)

    def require_multiple(self, width: int, name: str, factor: int = 1) -> None:
        """Raise UserError unless the width is a multiple of ``factor`` times a field."""
        value = getattr(self, name)
        if width % (factor * value):
            times = "twice " if factor == 2 else ""
            raise UserError(f"a mixer of width {width} needs a multiple of {times}model.mixer.{name}={value}")

    def require_ascending(self, low: str, high: str) -> None:
        """Raise UserError unless one positive field is below another."""
        least, most = getattr(self, low), getattr(self, high)
        if not 0 < least < most:
            raise UserError(
                f"model.mixer.{low} and {high} must satisfy 0 < {low} < {high}, not {least}, {most}"
            )
