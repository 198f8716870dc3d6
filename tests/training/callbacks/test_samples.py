"""What training writes to samples.txt."""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

from mambabyte.training.callbacks import samples


def test_samples_hold_no_commands_for_the_terminal_that_shows_them(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(samples, "sample_text", lambda *arguments: "\x1b[2J and\r\nmore\x00")
    settings = SimpleNamespace(sample_every=2, sample_prompt="a\tb", sample_bytes=9)
    callback = samples.Samples(SimpleNamespace(run_dir=tmp_path, callbacks=settings))
    module = SimpleNamespace(excluded_from_timing=nullcontext, unsharded_model="a model")
    for step in (1, 2, 3):
        callback.on_step(None, module, step)
    text = (tmp_path / "samples.txt").read_bytes().decode()
    assert text == "--- step 2\na\tb␛[2J and␍\nmore␀\n"
