"""`mambabyte generate`."""

import json
from pathlib import Path

import pytest
import torch

from mambabyte import checkpoints, commands
from mambabyte.commands import generate
from mambabyte.errors import UserError
from mambabyte.models import MambaByteConfig, SpaceByteConfig
from mambabyte.runtime.terminal import visible


def written(configure, capsys, *overrides: str) -> str:
    generate.run(configure("generate", *overrides))
    return capsys.readouterr().out


def test_prompt_and_continuation_are_printed(configure, finished: Path, capsys) -> None:
    greedy = [f"ckpt={finished}", "prompt=the quick é", "bytes=20", "temperature=0"]
    text = written(configure, capsys, *greedy)
    assert text.startswith("the quick é")
    assert len(text) > len("the quick é\n")
    assert written(configure, capsys, *greedy) == text


def test_the_seed_decides(configure, finished: Path, capsys) -> None:
    texts = [written(configure, capsys, f"ckpt={finished}", "bytes=64", f"seed={seed}") for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]


def test_rounded_weights_are_chosen(configure, finished: Path, capsys) -> None:
    common = [f"ckpt={finished}", "prompt=the ", "bytes=20", "device=cpu"]
    for weights in ("bf16", "int8"):
        assert written(configure, capsys, *common, f"weights={weights}").startswith("the ")
    with pytest.raises(UserError, match="int4"):
        configure("generate", *common, "weights=int4")


def test_drafts_are_verified_and_counted(configure, finished: Path, tmp_path: Path, capsys) -> None:
    smaller = tmp_path / "smaller"
    checkpoints.write_export(MambaByteConfig(d_model=8, n_layer=1, d_state=2).build(), None, 0, smaller)
    common = [f"ckpt={finished}", "prompt=the the the the the ", "bytes=60"]
    plain = written(configure, capsys, *common)
    for draft in ("ngram", smaller):
        generate.run(configure("generate", *common, f"draft={draft}"))
        out, err = capsys.readouterr()
        assert out == plain
        assert "; drafted " in err and err.count("\n") == 1
    generate.run(configure("generate", *common, f"draft={smaller}", "acceptance=top_beta", "top_beta=256"))
    assert "accepted 100%" in capsys.readouterr().err
    generate.run(
        configure("generate", *common, f"draft={smaller}", "acceptance=top_beta", "top_beta=256", "json=true")
    )
    found = json.loads(capsys.readouterr().out)
    assert found["drafted"] == found["accepted"] > 0 and "speedup" in found


def test_a_text_that_ends_in_the_middle_of_a_draft_is_shown_whole(
    configure, finished: Path, tmp_path: Path, capsys
) -> None:
    smaller = tmp_path / "smaller"
    checkpoints.write_export(MambaByteConfig(d_model=8, n_layer=1, d_state=2).build(), None, 0, smaller)
    drafting = [f"draft={smaller}", "acceptance=top_beta", "top_beta=256"]  # every guess is accepted
    for length in (16, 17, 18):
        common = [f"ckpt={finished}", "prompt=the ", f"bytes={length}", "valid_utf8=true", *drafting]
        (text,) = json.loads(written(configure, capsys, *common, "json=true"))["texts"]
        assert text["bytes"] == length
        assert written(configure, capsys, *common) == visible(f"the {text['text']}") + "\n"


def test_drafters_that_cannot_help_are_refused(configure, finished: Path) -> None:
    for overrides, message in (
        ([f"draft={finished}"], "computes as much for a byte as the model itself"),
        (
            ["draft=ngrams"],
            "draft=ngrams is neither ngram, heads nor a model: there is no checkpoint at 'ngrams'",
        ),
        (["draft=heads"], r"which this model has not: train one with model\.prediction_heads=4"),
        (["draft_length=4"], "add draft=ngram or draft=CKPT"),
        (["draft=ngram", "top_beta=5"], "top_beta= has no effect with acceptance=exact"),
        (["draft=ngram", "draft_length=0"], "draft_length must be at least 1"),
    ):
        with pytest.raises(UserError, match=message):
            generate.run(configure("generate", f"ckpt={finished}", *overrides))


@pytest.mark.parametrize(
    "override", ["temperature=-1", "top_p=0", "top_k=0", "bytes=0", "bytes=-3", "ckpt=nowhere"]
)
def test_wrong_settings_are_told_in_a_sentence(override: str, configure, finished: Path) -> None:
    with pytest.raises(UserError):
        generate.run(configure("generate", f"ckpt={finished}", override))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["bytes=14"], "of which the prompt takes 4: set bytes=13 or less"),
        (["bytes=13", "save_state=state"], "set bytes=12 or less"),
        (["bytes=1", "prompt_file=long"], "positions for 16 bytes, and what is to be continued has 17"),
    ],
    ids=["bytes", "state", "prompt"],
)
def test_more_bytes_than_the_model_has_positions_are_refused_before_any_is_written(
    settings: list[str], said: str, configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("long").write_bytes(b"x" * 17)
    config = SpaceByteConfig(max_length=16, d_model=16, n_layer=1, n_head=2, local_d_model=16, local_n_head=1)
    checkpoints.write_export(config.build(), None, 0, tmp_path / "model")
    with pytest.raises(UserError, match=said):
        generate.run(configure("generate", "ckpt=model", "prompt=four", *settings))
    assert capsys.readouterr().out == ""
    assert written(configure, capsys, "ckpt=model", "prompt=four", "bytes=13").startswith("four")


@pytest.fixture
def made_up(monkeypatch):
    """Have a model continue every prompt by an escape sequence, a letter of two bytes and an invalid byte."""
    produced = b"\x1b[31m\r" + "é".encode() + b"\xff"
    monkeypatch.setattr("mambabyte.generation.continuations.generate", lambda *arguments: iter(produced))


def test_control_characters_are_shown_as_symbols(configure, finished: Path, made_up, capsys) -> None:
    assert written(configure, capsys, f"ckpt={finished}", "prompt=a") == "a␛[31m␍é\ufffd\n"


def test_raw_output_is_the_bytes_alone(configure, finished: Path, made_up, capfdbinary) -> None:
    generate.run(configure("generate", f"ckpt={finished}", "prompt=a", "raw=true"))
    assert capfdbinary.readouterr().out == b"a\x1b[31m\r\xc3\xa9\xff"
    assert configure("generate", "ckpt=x").raw is False


def test_nan_weights_are_told_in_a_sentence_and_nothing_is_made_up(
    configure, finished: Path, tmp_path: Path, capsys
) -> None:
    content = checkpoints.read(finished).content
    for tensor in content["state_dict"].values():
        tensor.fill_(torch.nan)
    checkpoints.write(content, tmp_path / "nan.ckpt")
    (tmp_path / "file").write_bytes(b"some bytes")
    for command, *more in (
        ["generate"],
        ["eval", f"out={tmp_path}/evaluation"],
        ["compress", f"file={tmp_path}/file"],
    ):
        with pytest.raises(UserError, match="NaN"):
            commands.find(command).run(configure(command, f"ckpt={tmp_path}/nan.ckpt", *more))
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "file.mbc").exists()
