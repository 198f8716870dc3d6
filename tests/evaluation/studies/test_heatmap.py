"""Where the bits go, as text."""

import re
from html import unescape
from pathlib import Path

import numpy as np
import pytest

from mambabyte.data import ByteCorpus
from mambabyte.evaluation import Protocol, evaluate
from mambabyte.evaluation.bits_per_byte import first_documents
from mambabyte.evaluation.studies.heatmap import byte_bits, characters, to_terminal, write_html
from mambabyte.models import ByteLM


@pytest.mark.parametrize("protocol", ["disjoint", "sliding", "stateful"])
def test_the_bits_sum_to_the_figure(model: ByteLM, corpus: ByteCorpus, protocol: str) -> None:
    bits = byte_bits(model, first_documents(corpus), Protocol(protocol, 8, batch_size=3))
    result = evaluate(model, corpus, Protocol(protocol, 8, batch_size=3))
    assert sum(each.sum() for each in bits) / corpus.num_bytes == pytest.approx(
        result.bits_per_byte, rel=1e-9
    )
    assert all(each[0] == 8 for each in bits)


def test_a_character_has_the_mean_of_its_bytes() -> None:
    data = "aé\n".encode() + b"\xff"
    shown = characters(data, np.array([1.0, 2.0, 4.0, 0.5, 7.0]))
    assert [(c.text, c.bits_per_byte) for c in shown] == [("a", 1), ("é", 3), ("\n", 0.5), ("\ufffd", 7)]


def test_the_terminal_gets_the_text_and_none_of_its_control_characters() -> None:
    shown = characters(b"a\x1b\nb", np.array([0.0, 8.0, 4.0, 99.0]))
    painted = to_terminal(shown)
    assert re.sub(r"\x1b\[[0-9;]*m", "", painted) == "a\ufffd↵\nb"
    assert painted.startswith("\x1b[30;48;2;255;255;255ma") and "48;2;255;0;0mb" in painted


def test_the_page_holds_the_text_escaped(tmp_path: Path) -> None:
    shown = characters(b"<b>&'\n", np.arange(6.0))
    write_html([shown, shown], "a <title>", tmp_path / "new" / "bits.html")
    page = (tmp_path / "new" / "bits.html").read_text()
    assert "<b>" not in page and "a &lt;title&gt;" in page
    spans = re.findall(r"title='([0-9.]+)'>(.*?)</span>", page, re.DOTALL)
    assert "".join(unescape(text) for _, text in spans) == "<b>&'↵\n" * 2
    assert [float(bits) for bits, _ in spans] == [0, 1, 2, 3, 4, 5] * 2
