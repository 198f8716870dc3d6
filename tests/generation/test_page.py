"""The commands of docs/generation.md: each is one that the command line takes."""

import re
import shlex
from pathlib import Path

import pytest

from mambabyte.cli.flags import hydra_arguments
from mambabyte.commands import find

PAGE = (Path(__file__).parents[2] / "docs" / "generation.md").read_text("utf-8")
BLOCKS = re.findall(r"^```bash\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
COMMANDS = re.findall(r"^(?:.* \| )?mambabyte generate (.+?)(?: >> .*)?$", "".join(BLOCKS), re.MULTILINE)


@pytest.mark.parametrize("typed", COMMANDS)
def test_it_is_taken(typed: str) -> None:
    overrides, _ = hydra_arguments("generate", find("generate"), shlex.split(typed))
    settings = find("generate").settings
    ckpt = str(settings.from_composed(*settings.compose_yaml(overrides)).ckpt)
    assert ckpt in ("runs/quickstart", "runs/large", "runs/heads")


def test_the_page_has_commands() -> None:
    assert len(COMMANDS) > 10
