"""A small model and a small corpus of documents of awkward lengths."""

import numpy as np
import pytest
import torch

from mambabyte.data import ByteCorpus
from mambabyte.models import ByteLM, MambaByteConfig

LENGTHS = [1, 2, 40, 7, 8, 9, 23, 1, 64, 16]


def small_model(dtype: torch.dtype = torch.float32) -> ByteLM:
    torch.manual_seed(0)
    model = MambaByteConfig(d_model=32, n_layer=2, d_state=4).build().eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(10)  # far from uniform, so that context matters
    return model.to(dtype)


def small_corpus() -> ByteCorpus:
    data = np.random.default_rng(0).integers(0, 256, sum(LENGTHS), dtype=np.uint8)
    offsets = np.concatenate(([0], np.cumsum(LENGTHS))).astype(np.int64)
    return ByteCorpus(data, offsets, [str(i) for i in range(len(LENGTHS))])


@pytest.fixture(scope="session")
def model() -> ByteLM:
    return small_model()


@pytest.fixture(scope="session")
def corpus() -> ByteCorpus:
    return small_corpus()
