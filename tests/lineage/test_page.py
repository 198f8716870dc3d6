"""The page is built from the modules, complete and in one file."""

from __future__ import annotations

import re
from base64 import b64decode
from pathlib import Path

import pytest
import torch

from mambabyte.cli.main import main
from mambabyte.errors import UserError
from mambabyte.lineage import figures, page
from mambabyte.models import MambaByteConfig


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> page.Page:
    """With a model and all records."""
    records = tmp_path_factory.mktemp("records")
    (records / "scaling.csv").write_text(
        "layer,length,width,training_seconds\nattention,512,8,0.1\nattention,1024,8,0.4\nscan,512,8,0.1\n"
    )
    (records / "synthetic_tasks.csv").write_text(
        "task,mixer,block,accuracy\ncopying,s4,plain,0.999\nselective_copying,s4,plain,0.25\n"
        "copying,s6,mamba,1.0\ninduction_heads,s6,mamba,1.0\n"
    )
    torch.manual_seed(0)
    return page.build(MambaByteConfig(d_model=16, n_layer=2).build(), records)


def test_it_needs_no_other_file(built: page.Page) -> None:
    assert not re.search(r"<(script|link|iframe|object)|@import|url\(", built.html)
    sources = re.findall(r"<img [^>]*src='([^']{,30})", built.html)
    assert len(sources) == len(built.figures)
    assert all(source.startswith("data:image/png;base64,") for source in sources)


def test_every_figure_is_shown_and_every_figure_that_is_named_exists(built: page.Page) -> None:
    assert set(built.figures) == {*figures.COMPUTED, *figures.RECORDED, "delta"}
    for image in re.findall(r"base64,([^']+)'", built.html):
        assert b64decode(image) in built.figures.values()


def test_it_has_the_text_and_the_code_of_every_part(built: page.Page) -> None:
    for part in page.PARTS:
        assert f"<h2 id='{part}'>" in built.html
    for function in ("zero_order_hold", "remember_all", "s4_kernel", "selective_recurrence", "gated_mlp"):
        assert f'<span class="nf">{function}</span>' in built.html
    text = re.sub(
        r"<pre.*?</pre>|<code>.*?</code>|<style>.*?</style>|base64,[^']*", "", built.html, flags=re.S
    )
    assert not re.search(r"[_^]\{|\*\*|!\[|>>>|&amp;", text)  # nothing is left of the notation


def test_it_has_the_identities_as_measured(built: page.Page) -> None:
    table = built.html[built.html.index("<h2 id='identities'>") :]
    measured = [float(value) for value in re.findall(r"<td>(\d\.\de-\d\d)</td>", table)]
    assert len(measured) == len(page.IDENTITIES)
    for difference, identity in zip(measured, page.IDENTITIES, strict=True):
        assert difference <= identity.bound


def test_what_is_not_given_is_a_sentence_or_nothing(tmp_path: Path) -> None:
    assert "mambabyte lineage ckpt=" in figures.draw("delta", None, tmp_path)
    assert figures.draw("scaling", None, tmp_path) == ""


@pytest.mark.parametrize(
    "text", ["", "layer,length\nscan,512\n", b"layer\n\xff"], ids=["empty", "column", "utf8"]
)
def test_records_that_cannot_be_drawn_are_named(text: str | bytes, tmp_path: Path) -> None:
    path = tmp_path / "scaling.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=r"scaling\.csv (is not drawn: .* columns layer|cannot be read)"):
        figures.draw("scaling", None, tmp_path)


@pytest.mark.parametrize(
    ("name", "row", "said"),
    [
        ("scaling", "scan,512", "cell too few"),
        ("scaling", "scan,,1", "an empty one"),
        ("scaling", "scan,512,nan", "training_seconds=nan is out of range"),
        ("scaling", "scan,0,1", "length=0 is out of range"),
        ("scaling", "scan,512,0", "training_seconds=0 is out of range"),
        ("scaling", "scan,512,inf", "training_seconds=inf is out of range"),
        ("scaling", "scan,512,fast", "could not convert"),
        ("synthetic_tasks", "copying,s4,plain", "cell too few"),
        ("synthetic_tasks", "copying,s4,plain,97", "accuracy=97 is out of range"),
        ("synthetic_tasks", "copying,s4,plain,nan", "accuracy=nan is out of range"),
        ("synthetic_tasks", "induction_heads,s4,plain,1", "no row of the tasks"),
    ],
)
def test_figures_that_are_none_are_not_drawn(name: str, row: str, said: str, tmp_path: Path) -> None:
    columns = "layer,length,training_seconds" if name == "scaling" else "task,mixer,block,accuracy"
    (tmp_path / f"{name}.csv").write_text(f"{columns}\n{row}\n")
    with pytest.raises(UserError, match=rf"{name}\.csv is not drawn: .*{said}"):
        figures.draw(name, None, tmp_path)


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("h_k = a h_{k-1}", "<i>h</i><sub><i>k</i></sub> = <i>a</i> <i>h</i><sub><i>k</i>\u22121</sub>"),
        ("exp(ΔA)^{-1}", "exp(<i>ΔA</i>)<sup>\u22121</sup>"),
        ("Σ_{l<L} z^l", "<i>Σ</i><sub><i>l</i>&lt;<i>L</i></sub> <i>z</i><sup><i>l</i></sup>"),
        ("B̄_10 > W_up", "<i>B̄</i><sub>10</sub> &gt; <i>W</i><sub>up</sub>"),
    ],
    ids=["index", "power", "sum", "words"],
)
def test_formulas(text: str, html: str) -> None:
    assert page.formula(text) == html


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(page, "import_module", missing)
    with pytest.raises(UserError, match=r"markdown_it, which is not installed: pip install 'mambabyte\[line"):
        page._markdown("text")


class TestCommand:
    @pytest.fixture(autouse=True)
    def _quick(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(page, "build", lambda model, records: page.Page("the page", {"memory": b"PNG"}))

    def test_writes_the_page_and_its_figures(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["lineage"]) == 0
        assert "lineage.html and its figures are in lineage" in capsys.readouterr().out
        assert Path("lineage/lineage.html").read_text() == "the page"
        assert Path("lineage/memory.png").read_bytes() == b"PNG"

    def test_refuses_a_model_without_step_sizes(self, capsys: pytest.CaptureFixture[str]) -> None:
        import mambabyte
        from mambabyte.models import LSTMConfig

        mambabyte.save(LSTMConfig(d_model=8, n_layer=1).build(), "lstm")
        assert main(["lineage", "ckpt=lstm"]) == 1
        assert "lstm holds a model LSTM, which has no step sizes" in capsys.readouterr().err

    def test_refuses_records_that_are_not_there(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["lineage", "records=elsewhere"]) == 1
        assert "records=elsewhere is no folder" in capsys.readouterr().err

    def test_refuses_records_that_hold_nothing_to_draw(self, capsys: pytest.CaptureFixture[str]) -> None:
        Path("empty").mkdir()
        assert main(["lineage", "records=empty"]) == 1
        assert "records=empty has no synthetic_tasks.csv and no scaling.csv" in capsys.readouterr().err

    def test_refuses_a_folder_that_cannot_be_made(self, capsys: pytest.CaptureFixture[str]) -> None:
        Path("taken").write_text("")
        assert main(["lineage", "--out", "taken"]) == 1
        assert "taken" in capsys.readouterr().err
