"""Every conf/data/*.yaml builds what it says, with the short overrides that the data sheet promises."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from mambabyte.data import ByteDataModule, FilesSource, HuggingFaceSource, StandardLibrarySource
from mambabyte.data.documents import source_from_config
from mambabyte.errors import UserError

CONF = Path(__file__).parents[2] / "conf"
FIELDS = {"source", "windows", "streaming", "workers", "folder", "validation_bytes"}


def data(*overrides):
    """The data section as a command composes it, without the rest of its config."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(overrides=[f"+{overrides[0]}", *overrides[1:]]).data


def module(section):
    return ByteDataModule.from_config(
        section, context_length=16, micro_batch_size=1, global_batch_size=1, seed=0
    )


@pytest.mark.parametrize("name", [path.stem for path in sorted((CONF / "data").glob("*.yaml"))])
def test_every_config_has_the_same_fields(name):
    section = data(f"data={name}")
    assert set(section) >= FIELDS
    assert section.windows == "random_per_document"
    assert section.streaming is False


def test_stdlib(monkeypatch):
    monkeypatch.setenv("MAMBABYTE_DATA", "/elsewhere")
    built = module(data("data=stdlib", "data.validation_fraction=0.1", "data.windows=packed"))
    assert isinstance(built.source, StandardLibrarySource)
    assert built.source.validation_fraction == 0.1
    assert (built.windows, built.folder) == ("packed", Path("/elsewhere/prepared"))


def test_files(tmp_path, monkeypatch):
    monkeypatch.delenv("MAMBABYTE_DATA", raising=False)
    (tmp_path / "a.txt").write_text("some text")
    built = module(data("data=files", f"data.path={tmp_path}", "data.text_column=body"))
    assert isinstance(built.source, FilesSource)
    assert (built.source.paths, built.source.text_column) == ([str(tmp_path)], "body")
    assert built.folder == Path("data/prepared")
    listed = source_from_config(data("data=files", f"data.path=[{tmp_path}/a.txt,{tmp_path}]").source)
    assert [document.name for document in listed._all()] == ["a.txt"]


def test_files_without_a_path():
    with pytest.raises(UserError, match=r"data.path must name a file"):
        module(data("data=files"))


def test_hf():
    built = module(data("data=hf", "data.name=owner/set", "data.configuration=en", "data.streaming=true"))
    assert isinstance(built.source, HuggingFaceSource)
    assert built.streaming
    assert (built.source.name, built.source.configuration, built.source.path) == ("owner/set", "en", None)
    assert built.source.split_names == {"train": "train", "validation": "validation", "test": "test"}
    with pytest.raises(UserError, match=r"data.name="):
        module(data("data=hf"))


def test_pg19():
    source = source_from_config(data("data=pg19").source, only_ours=True)
    assert (source.name, source.path, source.text_column) == ("emozilla/pg19", None, "text")
    assert source_from_config(data("data=pg19", "data.path=books").source).path == "books"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.workers=many", "data.workers must be an integer"),
        ("data.streaming=3", "data.streaming must be true or false"),
        ("data.windows=some", "data.windows must be one of"),
        ("data.validation_fraction=much", "data.validation_fraction must be a number"),
        ("data.validation_bytes=1.5", "data.validation_bytes must be an integer"),
    ],
)
def test_ill_typed_overrides(override, message):
    with pytest.raises(UserError, match=message):
        module(data("data=stdlib", override))
