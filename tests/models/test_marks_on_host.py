"""Models that read the marks of documents on the host take them from there."""

import numpy as np
import pytest
import torch

from mambabyte.errors import UserError
from tests.models.every_model import MODELS, random_bytes

READING = [name for name, config in MODELS.items() if config.build().reads_marks_on_host]


def test_all_but_those_that_reset_their_own_state_read_them() -> None:
    resetting = {"mambabyte", "mambabyte-ngrams", "mamba-s6", "h3-s6"}
    resetting |= {"linear_attention", "mamba2", "mamba3", "rwkv", "ssd"}
    assert set(MODELS) - set(READING) == resetting


@pytest.mark.parametrize("name", READING)
def test_an_array_means_the_same_as_a_tensor(name: str) -> None:
    torch.manual_seed(0)
    model, bytes = MODELS[name].build(), random_bytes(3, 29)
    marks = np.zeros((3, 29), dtype=bool)
    marks[0, [0, 7, 8]] = marks[2, 28] = True
    with torch.no_grad():
        expected = model(bytes, document_start=torch.from_numpy(marks))
        assert torch.equal(model(bytes, document_start=marks), expected)
    with pytest.raises(UserError, match=r"boolean tensor of shape \(3, 29\)"):
        model(bytes, document_start=marks[:2])
