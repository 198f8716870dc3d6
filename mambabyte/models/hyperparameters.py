"""The hyperparameters of a model, typed; importing this imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from mambabyte.config.settings import Settings, TargetSettings, setting
from mambabyte.errors import UserError

if TYPE_CHECKING:
    from mambabyte.models.byte_lm import ByteLM


@dataclass(kw_only=True)
class ByteLMConfig(TargetSettings):
    """The hyperparameters of a model: its YAML fills them, and checkpoints carry them as plain JSON.

    A subclass is a dataclass that sets ``model`` to the class it configures.

    Attributes:
        prediction_heads: how many of the coming bytes the model predicts at each byte; 1 is the next alone.
        further_heads_weight: of the loss of those after the next one, against that of the next one.
    """

    section: ClassVar[str] = "model"
    model: ClassVar[type]  # of ByteLM
    prediction_heads: int = setting(default=1, at_least=1, at_most=64)
    further_heads_weight: float = setting(default=1.0, above=0, at_most=10**3)

    @classmethod
    def from_settings(cls, values: Any, where: str) -> TargetSettings:
        """As `TargetSettings` has it; the group ``mixer`` is refused beside a model that has none."""
        if isinstance(values, Mapping):
            ours, _, name = str(values.get("_target_")).removesuffix("Config").rpartition(".")
            if ours == "mambabyte.models" and name == "MixerStack":
                values = {"mixer": None, **values}
            elif ours == "mambabyte.models" and isinstance(values.get("mixer"), Mapping):
                raise UserError(
                    f"mixer= chooses the mixer of model=mixer_stack, and this model is {name}: leave it out, "
                    "or the experiment that sets it"
                )
        return super().from_settings(values, where)

    def build(self) -> ByteLM:
        """The model, freshly initialised from PyTorch's global generator.

        Raises:
            UserError: settings of prediction heads that the model has not.
        """
        if self.prediction_heads == 1 and self.further_heads_weight != 1:
            raise UserError(
                "model.prediction_heads=1 has no further heads, so model.further_heads_weight="
                f"{self.further_heads_weight:g} would be ignored: set model.prediction_heads=2 or more, or "
                "model.further_heads_weight=1"
            )
        model = self.model(self)
        if self.prediction_heads > 1 and model.further_heads is None:
            raise UserError(
                f"{type(model).__name__} predicts the next byte alone: set model.prediction_heads=1"
            )
        return model

    @classmethod
    def target(cls) -> str:
        """Our own classes are named by the package that exports them."""
        path = super().target()
        return f"mambabyte.models.{cls.__name__}" if path.startswith("mambabyte.models.") else path

    @property
    def positions(self) -> int | None:
        """The bytes that the model has positions for; None: any number."""
        return getattr(self, "max_length", None)

    @property
    def max_bytes(self) -> int | None:
        """The bytes of a text that the model can read, whatever they are; None: any number."""
        return self.positions

    def require_multiple(self, name: str, of: str, factor: int = 1) -> None:
        """Raise UserError unless one field is a multiple of ``factor`` times another."""
        value, unit = getattr(self, name), getattr(self, of)
        if value % (factor * unit):
            times = "twice " if factor == 2 else ""
            raise UserError(f"model.{name}={value} must be a multiple of {times}model.{of}={unit}")

    def require_ascending(self, low: str, high: str) -> None:
        """Raise UserError unless one positive field is below another."""
        least, most = getattr(self, low), getattr(self, high)
        if not 0 < least < most:
            raise UserError(f"model.{low} and {high} must satisfy 0 < {low} < {high}, not {least}, {most}")


@dataclass
class OfCheckpoint(ByteLMConfig):
    """``model=of_ckpt``: stands for the model of the checkpoint that a run starts from; with prediction
    heads, for that model and new further heads, unless it has them already."""

    def build(self) -> ByteLM:
        raise UserError("model=of_ckpt stands for the model of ckpt=, which is not read here")


@dataclass
class LoraSettings(Settings):
    """conf/lora: adapters beside a model's linear layers, which `models/lora.py` describes.

    ``targets`` are the layers' names, whole or their last parts.
    """

    section: ClassVar[str] = "lora"
    rank: int = setting(at_least=1, at_most=10**5)
    alpha: float = setting(above=0, at_most=10**6)
    dropout: float = setting(default=0.0, at_least=0, below=1)
    targets: list[str] = field(default_factory=lambda: ["in_proj", "x_proj", "dt_proj", "out_proj"])

    def __post_init__(self) -> None:
        if not self.targets:
            raise UserError("lora.targets names no layer: name one, or set lora=none")
