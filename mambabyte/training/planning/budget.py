"""Equal terms: a budget of parameters, compute or time, and the width or number of steps that meets it."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, fields, replace
from typing import Any

from omegaconf import DictConfig, OmegaConf

from mambabyte.config.composition import typed
from mambabyte.errors import UserError
from mambabyte.models import ByteLMConfig, config_from_dict
from mambabyte.training.planning.memory_estimate import on_meta

_WIDTHS = ("d_model", "d_ff", "local_d_model", "local_d_ff")
_LAYERS = ("n_layer", "local_n_layer")
_HEADS = ("n_head", "local_n_head")
_LARGEST_MISS = 0.05
_SAME_DEPTH_WITHIN = 2.0


@dataclass
class Budget:
    """conf/budget: what a run may cost; null is no limit."""

    parameters: float | None = None
    training_flops: float | None = None
    training_seconds: float | None = None

    def __post_init__(self) -> None:
        if self.training_flops is not None and self.training_seconds is not None:
            raise UserError(
                "budget.training_flops and budget.training_seconds both decide trainer.max_steps: "
                "set one of them to null"
            )


def within_budget(cfg: DictConfig) -> DictConfig:
    """The configuration of `mambabyte train` with its `budget` solved: the model's widths for
    ``budget.parameters``, then ``trainer.max_steps`` for ``budget.training_flops``. What needs a measurement,
    ``budget.training_seconds``, is `measured.with_measurements`'s.

    Raises:
        UserError: no width has nearly that many parameters, or the compute is less than a step's.
    """
    budget = typed(cfg.budget, Budget)
    cfg = copy.deepcopy(cfg)
    description: dict[str, Any] = OmegaConf.to_container(cfg.model, resolve=True)  # type: ignore[assignment]
    config = config_from_dict(description)
    if budget.parameters is not None:
        config = with_parameters(config, budget.parameters)
        cfg.model = config.to_dict()
    if budget.training_flops is not None:
        per_byte = on_meta(config).flops_per_byte(cfg.context_length).training
        flops = per_byte * cfg.trainer.global_batch_bytes
        cfg.trainer.max_steps = whole_steps("training_flops", budget.training_flops, flops)
    return cfg


def whole_steps(name: str, budget: float, cost_of_a_step: float) -> int:
    """The number of whole steps nearest to the budget of that name, in its unit."""
    if not budget >= cost_of_a_step / 2:
        raise UserError(
            f"budget.{name}={budget:.3g} is less than one step's {cost_of_a_step:.3g}; "
            "raise it or lower trainer.global_batch_bytes"
        )
    return max(1, round(budget / cost_of_a_step))


def with_parameters(config: ByteLMConfig, parameters: float) -> ByteLMConfig:
    """The same model, all its widths made larger or smaller in proportion, nearest to a parameter count.

    Beyond a factor of two its layers grow too, by the cube root of that factor: a count goes with the layers
    and the square of the width, so both stay in proportion. Heads grow half in number, half in size.
    """
    widths, layers, heads = (
        {f.name: getattr(config, f.name) for f in fields(config) if f.name in names}
        for names in (_WIDTHS, _LAYERS, _HEADS)
    )
    base = widths["d_model"]
    factor = parameters / on_meta(config).num_parameters()
    if not 1 / _SAME_DEPTH_WITHIN <= factor <= _SAME_DEPTH_WITHIN:
        scale = factor ** (1 / 3)
        layers = {name: max(1, round(n * scale)) for name, n in layers.items()}
        # In fours: few widths are multiples of odder numbers.
        heads = {name: max(1, 4 * round(n * scale**0.5 / 4)) for name, n in heads.items()}
    unit = math.lcm(8, *(2 * n for n in heads.values()), getattr(config, "patch_size", 1))

    def at(units: int) -> ByteLMConfig:
        scaled = {
            name: max(unit, round(value * units / base) * unit)
            for name, value in widths.items()
            if value is not None
        }
        return replace(config, **layers, **heads, **scaled)

    def count(units: int) -> int:
        return on_meta(at(units)).num_parameters()

    above = 1
    while count(above) < parameters:
        above *= 2
    below = max(1, above // 2)
    while above - below > 1:
        middle = (above + below) // 2
        below, above = (middle, above) if count(middle) < parameters else (below, middle)
    nearest = min((below, above), key=lambda units: abs(count(units) - parameters))
    if abs(count(nearest) - parameters) > _LARGEST_MISS * parameters:
        raise UserError(
            f"no width of this model has nearly budget.parameters={parameters:.3g} parameters: the nearest, "
            f"d_model={at(nearest).to_dict()['d_model']}, has {count(nearest):,}; "
            "ask for that or change model.n_layer"
        )
    return at(nearest)
