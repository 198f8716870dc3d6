"""What the parts claim, at the sizes of the page, and that what the text shows is what comes out."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest

from mambabyte.lineage import page
from mambabyte.lineage.identities import IDENTITIES, Identity


@pytest.mark.parametrize("identity", IDENTITIES, ids=lambda identity: identity.system.replace(" ", "-"))
def test_identity(identity: Identity) -> None:
    """1e-10 is far above the rounding of float64 and far below any term that could be missing; the online
    projections are as good as their steps are short, 1 in 10,000."""
    assert identity.difference() < identity.bound


@pytest.mark.parametrize("part", page.PARTS)
def test_the_examples_of_the_text(part: str) -> None:
    page.run_examples(import_module(f"mambabyte.lineage.{part}"))


def test_a_wrong_example_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "cells", lambda _: [("text", "Sums:\n\n>>> one + 1\n3"), ("code", "one = 1")])
    with pytest.raises(AssertionError, match="Expected:\n    3\nGot:\n    2"):
        page.run_examples(SimpleNamespace(one=1, __name__="sums"))


def test_the_table_of_the_docs_has_every_identity() -> None:
    docs = Path(__file__).parents[2] / "docs" / "lineage.md"
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in docs.read_text().splitlines()]
    table = {row[0]: row[1:] for row in rows if len(row) == 5}
    for identity in IDENTITIES:
        module, claim, command, measured = table[identity.system]
        assert (module, claim, command) == (f"`{identity.module}`", identity.claim, "`mambabyte lineage`")
        assert float(measured) < identity.bound
