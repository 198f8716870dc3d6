"""The matrices that FSDP gathers in bf16 are there while their block calls them, and not before or after."""

import pytest
import torch

from tests.models.every_model import MODELS, random_bytes


@pytest.mark.parametrize("name", MODELS)
def test_no_block_reads_them_but_by_calling_their_modules(name: str) -> None:
    torch.manual_seed(0)
    model, bytes = MODELS[name].build(), random_bytes(2, 29)
    matrices = [matrix for block in model.blocks() for matrix in model.matrices(block)]
    assert matrices or name in ("lstm", "cnn")
    with torch.no_grad():
        expected = model(bytes)
        for matrix in matrices:
            weight, missing = matrix.weight, torch.nn.Parameter(torch.full_like(matrix.weight, torch.nan))
            matrix.weight = missing
            matrix.register_forward_pre_hook(
                lambda module, *_, weight=weight: setattr(module, "weight", weight)
            )
            matrix.register_forward_hook(
                lambda module, *_, missing=missing: setattr(module, "weight", missing)
            )
        assert torch.equal(model(bytes), expected)
