"""What cannot be had on this machine is refused before anything is prepared or written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mambabyte.errors import UserError
from mambabyte.training import loggers


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["logger=tensorboard"], r"logger=tensorboard needs a package .*: pip install tensorboard"),
        (["logger=[wandb,tensorboard]"], r"logger=tensorboard needs a package"),
        (["trainer.accelerator=gpu"], r"trainer\.accelerator=gpu"),
        (["trainer.threads=auto", "trainer.micro_batch_size=auto", "logger=tensorboard"], "needs a package"),
        (["trainer.threads=auto", "optimizer.warmup_steps=13"], r"optimizer\.warmup_steps=13"),
        (
            ["callbacks.extra=[{_target_: lightning.pytorch.callbacks.Timer, bogus: 1}]"],
            r"callbacks\.extra\[0\] cannot be built",
        ),
    ],
)
def test_what_is_missing_here_is_told_before_there_is_a_run(
    overrides: list[str], sentence: str, start, monkeypatch, tmp_path: Path
) -> None:
    def absent(*_, **__):
        raise ModuleNotFoundError("no module 'tensorboard'")

    monkeypatch.setattr(loggers, "TensorBoardLogger", absent)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UserError, match=sentence) as caught:
        start("refused", *overrides)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir()), "neither a run directory nor prepared data"
