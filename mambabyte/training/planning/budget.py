"""Budgets of parameters, compute or time, and the widths or number of steps that meet them."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import fields, replace

from mambabyte.errors import UserError
from mambabyte.models import ByteLMConfig
from mambabyte.models.training_flops import training_flops_per_byte
from mambabyte.training.planning.memory_estimate import LAYERS, num_parameters
from mambabyte.training.settings import TrainSettings

_WIDTHS = ("d_model", "d_ff", "local_d_model", "local_d_ff")
_HEADS = ("n_head", "local_n_head")
_LARGEST_MISS = 0.05
_SAME_DEPTH_WITHIN = 2.0
_STEPS_WITHOUT_A_BUDGET = 1000


def within_budget(settings: TrainSettings) -> TrainSettings:
    """The settings with their budget solved: the model's widths for ``budget.parameters``, then
    ``trainer.max_steps`` for ``budget.training_flops``. Where it is null, it stays so only if
    ``budget.training_seconds`` is given: the run decides late (`mambabyte.training.time_budget`).

    Raises:
        UserError: no width has nearly that many parameters, or the compute is less than a step's.
    """
    budget, model, trainer = settings.budget, settings.model, settings.trainer
    if budget.parameters is not None:
        model = with_parameters(model, budget.parameters)
    if budget.training_flops is not None:
        per_byte = training_flops_per_byte(model, settings.context_length, settings.lora, settings.freeze)
        steps = whole_steps("training_flops", budget.training_flops, per_byte * trainer.global_batch_bytes)
        trainer = replace(trainer, max_steps=steps)
    elif trainer.max_steps is None and budget.training_seconds is None:
        trainer = replace(trainer, max_steps=_STEPS_WITHOUT_A_BUDGET)
    return replace(settings, model=model, trainer=trainer)


def whole_steps(name: str, budget: float, cost_of_a_step: float) -> int:
    """The number of whole steps nearest to ``budget.NAME``, in its unit."""
    if not budget >= cost_of_a_step / 2:
        raise UserError(
            f"budget.{name}={budget:.3g} is less than one step's {cost_of_a_step:.3g}; "
            "raise it or lower trainer.global_batch_bytes"
        )
    return max(1, round(budget / cost_of_a_step))


def with_parameters(config: ByteLMConfig, parameters: float) -> ByteLMConfig:
    """The same model with all widths scaled in proportion, to the nearest to a parameter count.

    Beyond a factor of two, layers scale too, by the cube root of that factor: the count is proportional to
    the layers and to the square of the width. Heads scale half in number, half in size. Where no width comes
    near, as between multiples of the size of Mamba-2's heads, there are up to a quarter more or less layers.
    """
    widths, layers, heads = (
        {f.name: getattr(config, f.name) for f in fields(config) if f.name in names}
        for names in (_WIDTHS, LAYERS, _HEADS)
    )
    if not isinstance(widths.get("d_model"), int):
        raise UserError(
            f"budget.parameters scales a model's one width, model.d_model, and {type(config).__name__} has "
            "others: set the sizes of its stages, and budget.parameters=null"
        )
    widths, heads = ({name: n for name, n in given.items() if n is not None} for given in (widths, heads))
    factor, least = parameters / num_parameters(config), getattr(config, "period", 1)
    if not 1 / _SAME_DEPTH_WITHIN <= factor <= _SAME_DEPTH_WITHIN:
        scale = factor ** (1 / 3)
        layers = {name: max(least, round(n * scale)) for name, n in layers.items()}
        # multiples of four, since few widths divide by others
        heads = {name: max(1, 4 * round(n * scale**0.5 / 4)) for name, n in heads.items()}
    units = (getattr(config, "patch_size", 1), getattr(config, "width_unit", 1))
    unit = math.lcm(8, *(2 * n for n in heads.values()), *units)

    first = None
    for depth in _depths(layers, least):
        solved = _with_nearest_width(config, {**depth, **heads}, widths, unit, parameters)
        if abs(num_parameters(solved) - parameters) <= _LARGEST_MISS * parameters:
            return solved
        first = first or solved
    assert first is not None
    raise UserError(
        f"no width of this model has nearly budget.parameters={parameters:,.0f} parameters: the nearest, "
        f"d_model={first.to_dict()['d_model']}, has {num_parameters(first):,}; ask for that or change "
        + ("model.ngram_buckets" if getattr(config, "ngram", 1) > 1 else "model.n_layer")
    )


def _depths(layers: dict[str, int], least: int) -> Iterator[dict[str, int]]:
    """The layers as they are, then with one more, one less, .. , up to a quarter."""
    yield layers
    depth = layers.get("n_layer", 0)
    for more in range(1, depth // 4 + 1):
        yield {**layers, "n_layer": depth + more}
        if depth - more >= least:
            yield {**layers, "n_layer": depth - more}


def _with_nearest_width(
    config: ByteLMConfig, fixed: dict[str, int], widths: dict[str, int], unit: int, parameters: float
) -> ByteLMConfig:
    """The model with the values of `fixed`, its widths multiples of `unit` in their proportion."""
    base = widths["d_model"]

    def at(units: int) -> ByteLMConfig:
        scaled = {name: max(unit, round(value * units / base) * unit) for name, value in widths.items()}
        return replace(config, **fixed, **scaled)

    def count(units: int) -> int:
        return num_parameters(at(units))

    limit = 1
    while count(limit) < parameters:
        limit *= 2
    above = bisect_left(range(limit), parameters, lo=max(1, limit // 2), key=count)
    return at(min((max(1, above - 1), above), key=lambda units: abs(count(units) - parameters)))
