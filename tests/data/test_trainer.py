"""The data module in a real lightning.Trainer: a run that is stopped and resumed sees the same windows."""

from __future__ import annotations

import logging

import lightning
import pyarrow
import pyarrow.parquet
import pytest
import torch

from mambabyte.data import ByteDataModule, DataSettings

STEPS, STOP, ACCUMULATION, MICRO = 7, 3, 2, 2


class Recorder(lightning.LightningModule):
    """Records the windows it is trained on; saves and stops at an optimizer step if asked to."""

    def __init__(self, stop_at=None, checkpoint=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.stop_at, self.checkpoint = stop_at, checkpoint
        self.windows = []

    def training_step(self, batch, batch_idx):
        self.windows += [bytes(row.tolist()) for row in batch["bytes"]]
        return self.weight.sum()

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if "position" in batch:
            self.trainer.datamodule.trained(batch["position"])
        if self.stop_at is not None and self.trainer.global_step == self.stop_at:
            self.trainer.should_stop = True
            self.trainer.save_checkpoint(self.checkpoint)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture
def make_module(tmp_path):
    rows = [str(number) * (10 + 7 * number) for number in range(12)]
    pyarrow.parquet.write_table(pyarrow.table({"text": rows}), tmp_path / "train-00000.parquet")

    def make_module(windows, streaming, workers):
        settings = DataSettings(
            source={"_target_": "mambabyte.data.HuggingFaceSource", "path": str(tmp_path)},
            windows=windows,
            workers=workers,
            folder=tmp_path / "prepared",
            streaming=streaming,
            validation_bytes=None,
        )
        return ByteDataModule(settings, 8, MICRO, MICRO * ACCUMULATION)

    return make_module


@pytest.fixture
def fit(make_module, tmp_path):
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    def fit(recorder, windows, streaming, workers, resume=None, steps=STEPS):
        module = make_module(windows, streaming, workers)
        trainer = lightning.Trainer(
            max_steps=steps,
            max_epochs=-1,
            accumulate_grad_batches=ACCUMULATION,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=tmp_path,
        )
        trainer.fit(recorder, datamodule=module, ckpt_path=resume, weights_only=True if resume else None)
        return recorder.windows

    return fit


SETTINGS = [
    ("random_per_document", False, 0),
    ("packed", False, 1),
    ("random_per_document", True, 0),
    ("contiguous", True, 1),
    ("packed", True, 2),
]


@pytest.mark.filterwarnings("error:.*dataloader is not resumable")
@pytest.mark.parametrize(("windows", "streaming", "workers"), SETTINGS)
def test_stopped_and_resumed_sees_the_same_windows(windows, streaming, workers, fit, tmp_path):
    whole = fit(Recorder(), windows, streaming, workers)
    assert len(whole) == STEPS * ACCUMULATION * MICRO
    checkpoints = [tmp_path / f"{step}.ckpt" for step in (STOP, STOP + 2)]
    parts = fit(Recorder(STOP, checkpoints[0]), windows, streaming, workers)
    assert len(parts) == STOP * ACCUMULATION * MICRO
    parts += fit(Recorder(STOP + 2, checkpoints[1]), windows, streaming, workers, resume=checkpoints[0])
    parts += fit(Recorder(), windows, streaming, workers, resume=checkpoints[1])
    assert parts == whole


@pytest.mark.parametrize(("windows", "streaming", "workers"), SETTINGS)
def test_a_plain_loop_sees_what_a_trainer_sees(windows, streaming, workers, make_module, fit):
    batches = make_module(windows, streaming, workers).train_batches(max_steps=STEPS)
    seen = [bytes(row.tolist()) for batch in batches for row in batch["bytes"]]
    assert seen == fit(Recorder(), windows, streaming, workers)


def test_run_can_be_lengthened(fit, tmp_path):
    whole = fit(Recorder(), "contiguous", False, 0)
    parts = fit(Recorder(STOP, tmp_path / "a.ckpt"), "contiguous", False, 0, steps=STOP)
    assert parts + fit(Recorder(), "contiguous", False, 0, resume=tmp_path / "a.ckpt") == whole
