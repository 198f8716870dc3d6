"""What `mambabyte train` does about a step that would harm the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mambabyte import checkpoints
from mambabyte.errors import UserError
from mambabyte.runs.metrics_csv import read_metrics
from mambabyte.training import spikes
from mambabyte.training.module import ByteLMModule

SKIP = "trainer.on_spike=skip"


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch):
    """spoil({7: inf}) multiplies the losses of step 7 by that; spoil({}) ends it."""
    original = ByteLMModule.training_step
    factors: dict[int, float] = {}

    def training_step(self, batch, batch_index):
        return original(self, batch, batch_index) * factors.get(self.global_step + 1, 1.0)

    monkeypatch.setattr(ByteLMModule, "training_step", training_step)

    def spoil(now: dict[int, float]) -> None:
        factors.clear()
        factors.update(now)

    return spoil


def known(run_dir: Path, step: int) -> dict[str, Any]:
    return json.loads((run_dir / "spikes" / f"step_{step:08d}.json").read_text())


def test_a_skipped_step_leaves_weights_and_moments_alone_and_the_data_goes_on(
    start, spoil, capsys, tmp_path: Path
) -> None:
    spoil({6: float("nan")})
    settings = [SKIP, "callbacks.checkpoint_every=1", "callbacks.checkpoints_kept=9", "callbacks.log_every=1"]
    run_dir = start("skips", *settings)
    five, six, seven = (
        checkpoints.read(run_dir / "checkpoints" / f"step_{step:08d}.ckpt") for step in (5, 6, 7)
    )
    for name, tensor in five.state_dict.items():
        assert torch.equal(tensor, six.state_dict[name]), name
    moments = zip(
        *(part.content["optimizer_states"][0]["state"].values() for part in (five, six, seven)), strict=True
    )
    for before, after, then in moments:
        assert all(torch.equal(before[key], after[key]) for key in before)
        assert then["step"] == before["step"] + 1
        assert not torch.equal(after["exp_avg"], then["exp_avg"])
    rows = {row["step"]: row for row in read_metrics(run_dir / "metrics.csv")}
    assert [rows[step]["skipped_steps"] for step in (5, 6, 7, 12)] == [0, 1, 1, 1]
    assert not np.isfinite(rows[6]["gradient_norm"]) and np.isfinite(rows[7]["gradient_norm"])
    assert (run_dir / "loss_curve.png").exists()
    path = run_dir / "spikes" / "step_00000006.json"
    sentence = (
        f"mambabyte: skipped step 6, whose loss or gradient is not a finite number; its windows: {path}"
    )
    assert capsys.readouterr().err.count(sentence) == 1


def test_the_windows_of_a_spike_can_be_looked_up_and_replayed(
    start, spoil, configure, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    original = ByteLMModule.training_step

    def training_step(self, batch, batch_index):
        if self.global_step == 5:
            seen.append(batch)
        return original(self, batch, batch_index)

    spoil({6: float("inf")})
    monkeypatch.setattr(ByteLMModule, "training_step", training_step)
    run_dir = start("looked_at", SKIP, "callbacks.checkpoints_kept=3")
    with np.load(run_dir / "spikes" / "step_00000006.npz", allow_pickle=False) as arrays:
        saved = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    assert saved.keys() == {"bytes", "targets", "document_start"}
    for name, tensor in saved.items():
        assert torch.equal(tensor, torch.cat([batch[name] for batch in seen])), name

    spike = known(run_dir, 6)
    assert spike["step"] == 6 and spike["gradient_norm"] in ("inf", "nan")
    model = checkpoints.load_model(run_dir / "checkpoints" / "step_00000005.ckpt")
    assert len(spike["windows"]) == 8
    for window, text, targets in zip(spike["windows"], saved["bytes"], saved["targets"], strict=True):
        document = (corpus / window["document"]).read_bytes()
        offset = window["offset"]
        own = document[offset : offset + 32]
        assert text.numpy().tobytes()[: len(own)] == own
        with torch.no_grad():
            logits = model(text[None])[0]
        if len(own) == 32:  # of one document, so that the model's state is not reset inside
            nats = torch.nn.functional.cross_entropy(logits, targets.long(), reduction="sum")
            assert window["nats"] == pytest.approx(float(nats), rel=1e-4)  # other sums' order
            assert window["scored_bytes"] == int((targets != -100).sum())


def test_stopping_names_the_file_and_skipping_gets_past_it(start, spoil, finished, tmp_path: Path) -> None:
    spoil({8: float("nan")})
    run_dir = tmp_path / "runs" / "stops"
    with pytest.raises(UserError, match=r"at step 8 .*spikes/step_00000008\.json.*trainer\.on_spike=skip"):
        start("stops")
    assert checkpoints.read(run_dir).step == 5
    assert len(known(run_dir, 8)["windows"]) == 8
    assert start("stops", SKIP) == run_dir
    assert checkpoints.read(run_dir).step == 12
    assert read_metrics(run_dir / "metrics.csv")[-1]["skipped_steps"] == 1


def test_a_step_far_above_the_usual_is_a_spike(start, spoil, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spikes, "HISTORY", 4)
    monkeypatch.setattr(spikes, "MIN_HISTORY", 2)
    spoil({9: 1e6})  # the gradient only: the loss that is judged is the measured one
    run_dir = start("far", SKIP, "trainer.spike_threshold=100", "trainer.gradient_clip=null")
    spike = known(run_dir, 9)
    assert 1 < spike["loss"] < 6 and spike["gradient_norm"] > 1e4
    assert sorted(path.name for path in (run_dir / "spikes").glob("*.json")) == ["step_00000009.json"]


def test_nothing_but_spikes_is_not_skipped_for_ever(start, spoil, tmp_path: Path) -> None:
    spoil({step: float("nan") for step in range(2, 13)})
    with pytest.raises(UserError, match="at step 11, the last of 10 in a row,"):
        start("hopeless", SKIP)
    weights = checkpoints.read(tmp_path / "runs" / "hopeless").state_dict.values()
    assert all(tensor.isfinite().all() for tensor in weights)


def test_a_stream_names_the_place_behind_its_batch(start, spoil, tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    texts = [f"book {number}: " + "happy families are all alike. " * (number + 3) for number in range(7)]
    for split in ("train", "validation"):
        pyarrow.parquet.write_table(pyarrow.table({"text": texts}), tmp_path / f"{split}-0.parquet")
    spoil({2: float("nan")})
    run_dir = start("stream", "data=hf", f"data.path={tmp_path}", "data.streaming=true", SKIP)
    windows = known(run_dir, 2)["windows"]
    assert len(windows) == 8 and windows[0]["worker"] == 0 and windows[0]["taken"] > 0


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("trainer.on_spike=ignore", r"trainer\.on_spike must be one of stop, skip"),
        ("trainer.spike_threshold=0", r"trainer\.spike_threshold must be above 0, or null"),
    ],
)
def test_wrong_policies_are_told_in_a_sentence(override: str, sentence: str, start) -> None:
    with pytest.raises(UserError, match=sentence):
        start("wrong", override)
