"""`mambabyte generate`."""

from pathlib import Path

import pytest

from mambabyte.commands import generate
from mambabyte.errors import UserError


def written(configure, capsys, *overrides: str) -> str:
    generate.run(configure("generate", *overrides))
    return capsys.readouterr().out


def test_prompt_and_continuation_are_printed(configure, finished: Path, capsys) -> None:
    greedy = [f"ckpt={finished}", "prompt='the quick é'", "bytes=20", "temperature=0"]
    text = written(configure, capsys, *greedy)
    assert text.startswith("the quick é")
    assert len(text) > len("the quick é\n")
    assert written(configure, capsys, *greedy) == text


def test_the_seed_decides(configure, finished: Path, capsys) -> None:
    texts = [written(configure, capsys, f"ckpt={finished}", "bytes=64", f"seed={seed}") for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize(
    "override", ["temperature=-1", "top_p=0", "top_k=0", "bytes=0", "bytes=-3", "ckpt=nowhere"]
)
def test_wrong_settings_are_told_in_a_sentence(override: str, configure, finished: Path) -> None:
    with pytest.raises(UserError):
        generate.run(configure("generate", f"ckpt={finished}", override))
