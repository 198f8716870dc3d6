"""mambabyte drafter: a subword drafter from a run's own data, or from other data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mambabyte.commands import drafter, generate
from mambabyte.errors import UserError
from mambabyte.generation.speculative.subword import load_subword_drafter
from tests.conftest import FILES

SMALL = [
    *("vocabulary=260", "d_model=8", "n_layer=1", "d_state=2", "context_length=8", "batch_size=2"),
    *("max_steps=3", "device=cpu"),
]


def test_it_learns_from_the_runs_data_and_is_written_once(
    finished: Path, configure: Callable, tmp_path: Path, capsys
) -> None:
    settings = configure("drafter", f"ckpt={finished}", f"out={tmp_path}/new/drafter", *SMALL)
    drafter.run(settings)
    assert "260 subwords" in capsys.readouterr().err
    load_subword_drafter(tmp_path / "new" / "drafter", torch.device("cpu"))
    with pytest.raises(UserError, match="is there already"):
        drafter.run(settings)


def test_generate_takes_it_and_writes_the_same_text(
    finished: Path, configure: Callable, tmp_path: Path, capsys
) -> None:
    drafter.run(configure("drafter", f"ckpt={finished}", f"out={tmp_path}/drafter", *SMALL))
    texts = []
    for draft in ([], [f"draft={tmp_path}/drafter"]):
        capsys.readouterr()
        generate.run(configure("generate", f"ckpt={finished}", "prompt=the ", "bytes=60", *draft))
        texts.append(capsys.readouterr())
    assert texts[0].out == texts[1].out
    assert "drafted" in texts[1].err


def test_other_data_may_be_given(finished: Path, configure: Callable, tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"another text \xff " * 20)
    data = [*FILES, f"data.path={tmp_path}/text", f"data.folder={tmp_path}/p"]
    drafter.run(configure("drafter", f"ckpt={finished}", f"out={tmp_path}/drafter", *data, *SMALL))
    assert (tmp_path / "drafter" / "tokenizer.json").is_file()


def test_where_it_cannot_be_written_is_one_sentence(
    finished: Path, configure: Callable, tmp_path: Path, monkeypatch
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    monkeypatch.setattr("mambabyte.training.subword_drafter.train_subword_drafter", None)
    for out, message in (("file/drafter", "file/drafter"), ("link", "is there already")):
        with pytest.raises(UserError, match=message):
            drafter.run(configure("drafter", f"ckpt={finished}", f"out={tmp_path}/{out}", *SMALL))


def test_settings_of_no_data_say_what_is_missing(configure: Callable) -> None:
    with pytest.raises(UserError, match="need a choice of data first: add one, as in data=files"):
        configure("drafter", "ckpt=a", "data.path=x")
