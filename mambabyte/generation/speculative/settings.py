"""From the settings of `mambabyte generate` to the drafting they ask for."""

from __future__ import annotations

from pathlib import Path

from mambabyte import checkpoints
from mambabyte.errors import UserError
from mambabyte.generation.speculative.drafter import Drafter
from mambabyte.generation.speculative.drafting import TOP_BETA, Acceptance, Drafting
from mambabyte.generation.speculative.heads import HeadsDrafter
from mambabyte.generation.speculative.model import ModelDrafter
from mambabyte.generation.speculative.ngram import NgramDrafter
from mambabyte.generation.speculative.subword import is_subword_drafter, load_subword_drafter
from mambabyte.models import ByteLM

NGRAM, HEADS = "ngram", "heads"
_LENGTH = 1024  # bytes of context, at which the cost of two models is compared


def drafting_from(
    draft: str | Path | ByteLM,
    model: ByteLM,
    length: int | None = None,
    acceptance: Acceptance = "exact",
    top_beta: int = TOP_BETA,
) -> Drafting:
    """Drafting for a model.

    Args:
        draft: `ngram`; `heads`, the model's own; or a smaller model, or where one is: a run directory, a
            checkpoint file, the folder of a model, or hub:owner/name; or the folder of a subword drafter.
        length: the most guesses in a round; by default as many as pay.
        acceptance, top_beta: see `Drafting`.

    Raises:
        UserError: an argument is out of range; there is no such checkpoint, or it cannot be read; the drafter
            costs as much as the model; the model has no further heads.
    """
    return Drafting(_drafter(draft, model), length, acceptance, top_beta)


def _drafter(draft: str | Path | ByteLM, model: ByteLM) -> Drafter:
    if draft == NGRAM:
        return NgramDrafter()
    if draft == HEADS:
        return HeadsDrafter(model)
    if not isinstance(draft, ByteLM) and is_subword_drafter(Path(draft).expanduser()):
        return load_subword_drafter(Path(draft).expanduser(), model.device)
    return ModelDrafter(_smaller(draft, model))


def _smaller(draft: str | Path | ByteLM, model: ByteLM) -> ByteLM:
    name = "the drafter" if isinstance(draft, ByteLM) else f"draft={draft}"
    try:
        drafter = draft if isinstance(draft, ByteLM) else checkpoints.load_model(draft)
    except UserError as error:
        raise UserError(f"{name} is neither ngram, heads nor a model: {error}") from error
    cost, limit = (each.flops_per_byte(_LENGTH).inference for each in (drafter, model))
    if cost >= limit:
        raise UserError(
            f"{name} computes as much for a byte as the model itself ({cost:.3g} and {limit:.3g} "
            "operations), so its guesses save nothing: choose a smaller model, or draft=ngram"
        )
    return drafter.to(model.device)
