"""What every test shares."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Models this small wait longer for a second thread than they compute, and sums keep one order."""
    torch.set_num_threads(1)
