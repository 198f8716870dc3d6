"""The scan statistics agree with an independent computation."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.functional import softplus

from mambabyte.models import ByteLM, MambaByteConfig
from mambabyte.models.lstm import LSTMConfig
from mambabyte.training.callbacks.scan_statistics import NAMES, ScanStatistics


def logged(model: ByteLM, callback: ScanStatistics, step: int) -> dict[str, float]:
    """The callback's columns after optimizer step `step`, of one micro-batch."""
    text = torch.randint(256, (3, 20), generator=torch.Generator().manual_seed(step))
    module: Any = SimpleNamespace(modules=model.modules)
    trainer: Any = SimpleNamespace(is_global_zero=True, global_step=step - 1)
    callback.on_train_batch_start(trainer, module)
    model(text)
    callback.on_step(trainer, module, step)
    return callback.columns()


def test_step_sizes_and_rates_are_those_of_the_first_window_and_all_layers() -> None:
    torch.manual_seed(0)
    model = MambaByteConfig(d_model=16, n_layer=3, d_state=4).build()
    deltas: list[torch.Tensor] = []
    mixers = [layer.mixer for layer in model.backbone.layers]
    for mixer in mixers:
        mixer.x_proj.register_forward_hook(
            lambda _, inputs, output, mixer=mixer: deltas.append(
                softplus(mixer.dt_proj(output[:1, :, : mixer.rank]) + mixer.dt_proj.bias).detach()
            )
        )
    found = logged(model, ScanStatistics(lambda step: step % 5 == 0), 5)
    delta = torch.stack(deltas)
    rates = torch.stack([-mixer.A_log.exp() for mixer in mixers])
    expected = [f(values).item() for values in (delta, rates) for f in (torch.mean, torch.min, torch.max)]
    assert list(found) == list(NAMES)
    assert list(found.values()) == pytest.approx(expected, rel=1e-5)  # float32 sums in another order


def test_steps_that_are_not_logged_are_not_measured() -> None:
    model = MambaByteConfig(d_model=16, n_layer=1, d_state=4).build()
    callback = ScanStatistics(lambda step: step % 5 == 0)
    assert logged(model, callback, 4) == {}
    first = logged(model, callback, 5)
    assert logged(model, callback, 6) == {}
    assert logged(model, callback, 10) != first


def test_a_model_without_scans_has_no_columns() -> None:
    model = LSTMConfig(d_model=16, n_layer=1).build()
    assert logged(model, ScanStatistics(lambda step: True), 1) == {}
