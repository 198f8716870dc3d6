"""Every conf/data/*.yaml builds what it says, with the short overrides that the data sheet promises."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from mambabyte.data import (
    ByteDataModule,
    FilesSource,
    HeldOutSource,
    HuggingFaceSource,
    StandardLibrarySource,
)
from mambabyte.data.sources.documents import source_from_config, with_absolute_paths
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
    assert section.windows == ("packed" if name == "code" else "random_per_document")
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
    assert source.books == {"train": 28602, "validation": 50, "test": 100}
    assert source.splits == ("train", "validation", "test")
    local = source_from_config(data("data=pg19", "data.path=books").source)
    assert (local.path, local.books) == ("books", {})
    assert source_from_config(data("data=pg19", "data.books=null").source).books == {}


def test_pg19_texts():
    source = source_from_config(data("data=pg19_texts").source, only_ours=True)
    assert (source.remote, source.books["train"]) == (True, 28602)
    local = source_from_config(data("data=pg19_texts", "data.texts=/books").source)
    assert (local.remote, local.texts) == (False, "/books")


@pytest.mark.parametrize(
    ("name", "repository", "configuration"),
    [
        ("stories", "lucadiliello/STORIES", None),
        ("books", "common-pile/pre_1929_books_filtered", None),
        ("arxiv", "common-pile/arxiv_papers_filtered", None),
        ("code", "common-pile/stackv2_edu_filtered", None),
        ("fineweb_edu", "HuggingFaceFW/fineweb-edu", "sample-10BT"),
        ("wikipedia", "wikimedia/wikipedia", "20231101.en"),
    ],
)
def test_corpora_of_the_hub(name, repository, configuration):
    section = data(f"data={name}")
    source = source_from_config(section.source, only_ours=True)
    assert (source.name, source.configuration, source.text_column) == (repository, configuration, "text")
    assert source.identity()["revision"] == section.revision  # a commit: the hub is not asked
    if name == "stories":
        assert source.split_names["validation"] == "dev"
    else:
        assert isinstance(source, HeldOutSource)
        assert (source.validation_fraction, source.splits) == (0.01, ("train", "validation"))
        assert section.validation_bytes == 10_000_000


def test_wikipedia_of_another_language():
    source = source_from_config(data("data=wikipedia", "data.language=ja").source)
    assert source.configuration == "20231101.ja"


def test_paths_are_made_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")

    def paths(*overrides):
        section = OmegaConf.to_container(data(*overrides), resolve=True)
        found = with_absolute_paths(section)
        assert found["source"]["_target_"] == section["source"]["_target_"]
        key = "texts" if "texts" in section else "path"
        assert found[key] == found["source"][key]
        return found[key]

    here = str(tmp_path)
    assert paths("data=files", "data.path=books/*.txt") == f"{here}/books/*.txt"
    assert paths("data=files", "data.path=[a,/b]") == [f"{here}/a", "/b"]
    assert paths("data=hf", "data.path='~/c'") == "/home/me/c"
    assert paths("data=pg19") is None
    assert paths("data=pg19_texts").startswith("https://")
    theirs = {"path": "a", "source": {"_target_": "their.Source", "path": "a"}}
    assert with_absolute_paths(theirs) == theirs
    assert "path" not in with_absolute_paths(OmegaConf.to_container(data("data=stdlib")))


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
