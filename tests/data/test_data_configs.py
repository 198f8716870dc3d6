"""Every conf/data/*.yaml builds its source, with the short overrides that the data sheet documents."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from mambabyte.config.settings import to_plain
from mambabyte.data import (
    DataSettings,
    FilesSource,
    HeldOutSource,
    HuggingFaceSource,
    StandardLibrarySource,
)
from mambabyte.errors import UserError

CONF = Path(__file__).parents[2] / "conf"
FIELDS = {"source", "windows", "streaming", "workers", "folder", "validation_bytes"}
CHOICES = [path.stem for path in sorted((CONF / "data").glob("*.yaml"))]


def data(*overrides):
    """The data section of a command's configuration."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        section = compose(overrides=[f"+{overrides[0]}", *overrides[1:]]).data
    return OmegaConf.to_container(section, resolve=True)


def settings(*overrides):
    return DataSettings.from_settings(data(*overrides), "data")


def source(*overrides):
    return settings(*overrides).build_source(only_ours=True)


@pytest.mark.parametrize("name", CHOICES)
def test_every_config_has_the_same_fields(name):
    section = data(f"data={name}")
    assert set(section) >= FIELDS
    assert section["windows"] == ("packed" if name == "code" else "random_per_document")
    assert section["streaming"] is False


def test_stdlib(monkeypatch):
    monkeypatch.setenv("MAMBABYTE_DATA", "/elsewhere")
    built = settings("data=stdlib", "data.validation_fraction=0.1", "data.windows=packed")
    assert built.build_source() == StandardLibrarySource(validation_fraction=0.1)
    assert (built.windows, built.folder) == ("packed", Path("/elsewhere/prepared"))


def test_files(tmp_path, monkeypatch):
    monkeypatch.delenv("MAMBABYTE_DATA", raising=False)
    (tmp_path / "a.txt").write_text("some text")
    built = settings("data=files", f"data.path={tmp_path}", "data.text_column=body")
    assert built.build_source() == FilesSource(str(tmp_path), text_column="body")
    assert built.folder == Path("data/prepared")
    listed = source("data=files", f"data.path=[{tmp_path}/a.txt,{tmp_path}]")
    assert [document.name for document in listed.documents("train")] == ["a.txt"]


def test_files_are_measured_whole_unless_a_share_is_set():
    def fraction(data):
        return data.source["validation_fraction"]

    files = settings("data=files", "data.path=a")
    assert fraction(files.measured_whole()) == 1
    assert fraction(files.with_absolute_paths()) == 0.05  # as a run records it
    some = settings("data=files", "data.path=a", "data.validation_fraction=0.2")
    assert fraction(some.measured_whole()) == fraction(some.with_absolute_paths()) == 0.2
    for other in (settings("data=stdlib"), settings("data=wikipedia")):
        assert other.measured_whole() == other


def test_files_without_a_path():
    with pytest.raises(UserError, match=r"data.path must name a file"):
        source("data=files")


def test_hf():
    built = settings("data=hf", "data.name=owner/set", "data.configuration=en", "data.streaming=true")
    assert built.streaming
    hub = built.build_source()
    assert isinstance(hub, HuggingFaceSource)
    assert (hub.name, hub.configuration, hub.path) == ("owner/set", "en", None)
    assert hub.split_names == {"train": "train", "validation": "validation", "test": "test"}
    with pytest.raises(UserError, match=r"data.name="):
        source("data=hf")


def test_pg19():
    hub = source("data=pg19")
    assert (hub.name, hub.path, hub.text_column) == ("emozilla/pg19", None, "text")
    assert hub.books == {"train": 28602, "validation": 50, "test": 100}
    assert hub.splits == ("train", "validation", "test")
    local = source("data=pg19", "data.path=books")
    assert (local.path, local.books) == ("books", {})
    assert source("data=pg19", "data.books=null").books == {}


def test_pg19_texts():
    storage = source("data=pg19_texts")
    assert (storage.remote, storage.books["train"]) == (True, 28602)
    local = source("data=pg19_texts", "data.texts=/books")
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
    hub = source(f"data={name}")
    assert (hub.name, hub.configuration, hub.text_column) == (repository, configuration, "text")
    assert hub.identity()["revision"] == section["revision"]  # a commit: the hub is not asked
    if name == "stories":
        assert hub.split_names["validation"] == "dev"
    else:
        assert isinstance(hub, HeldOutSource)
        assert (hub.validation_fraction, hub.splits) == (0.01, ("train", "validation"))
        assert section["validation_bytes"] == 10_000_000


def test_wikipedia_of_another_language():
    assert source("data=wikipedia", "data.language=ja").configuration == "20231101.ja"


def test_paths_are_made_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")

    def paths(*overrides):
        before = settings(*overrides)
        found = before.with_absolute_paths().source
        assert found.keys() == before.source.keys() and found["_target_"] == before.source["_target_"]
        return found["texts" if "texts" in found else "path"]

    here = str(tmp_path)
    assert paths("data=files", "data.path=books/*.txt") == f"{here}/books/*.txt"
    assert paths("data=files", "data.path=[a,/b]") == [f"{here}/a", "/b"]
    assert paths("data=hf", "data.path='~/c'") == "/home/me/c"
    assert paths("data=pg19") is None
    assert paths("data=pg19_texts").startswith("https://")
    theirs = settings("data=stdlib")
    theirs.source = {"_target_": "their.Source", "path": "a"}
    assert theirs.with_absolute_paths() == theirs
    assert settings("data=stdlib").with_absolute_paths() == settings("data=stdlib")


@pytest.mark.parametrize("name", CHOICES)
def test_what_is_saved_is_what_the_program_reads(name):
    built = settings(f"data={name}")
    saved = to_plain(built)
    assert saved.keys() == FIELDS | {"block_windows"}
    assert DataSettings.from_settings(yaml.safe_load(yaml.safe_dump(saved)), "data") == built


def test_a_configuration_saved_by_version_0_1_builds_the_same_source(tmp_path):
    """It had the short names beside the source, and `streaming` in the source meant `not download`."""
    for streaming in (True, False):
        source = {
            "_target_": "mambabyte.data.HuggingFaceSource",
            "name": None,
            "path": str(tmp_path),
            "revision": None,
            "configuration": None,
            "text_column": "text",
            "streaming": streaming,
            "retries": 8,
            "split_names": {"train": "train"},
        }
        section = {"name": None, "path": str(tmp_path), "retries": 8, "source": source, "windows": "packed"}
        section |= {"streaming": False, "workers": 0, "folder": "data/prepared", "validation_bytes": None}
        found = DataSettings.from_settings(section, "data")
        assert found.build_source(only_ours=True) == HuggingFaceSource(
            path=str(tmp_path), split_names={"train": "train"}, download=not streaming
        )
        assert "name" not in to_plain(found) and found.block_windows == 1024


def test_a_source_of_your_own(tmp_path):
    theirs = {"_target_": "tests.data.test_data_configs.TheirSource", "streaming": 3}
    section = {**data("data=stdlib"), "source": theirs}
    assert DataSettings.from_settings(section, "data").build_source().streaming == 3
    with pytest.raises(UserError, match="was not run"):
        DataSettings.from_settings(section, "data").build_source(only_ours=True)


class TheirSource:
    def __init__(self, streaming):
        self.streaming = streaming


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
        source("data=stdlib", override)


@pytest.mark.parametrize("path", ["nowhere", "nowhere/*.txt", ["texts", "nowhere"]])
def test_a_path_that_leads_nowhere_is_told_at_once(path, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("text")
    settings = DataSettings(source={"_target_": "mambabyte.data.FilesSource", "path": path})
    with pytest.raises(UserError, match="nowhere"):
        settings.check_path()
    for good in ("texts", "texts/*.txt", ["texts"], "https://example.org/texts"):
        settings.source = {**settings.source, "path": good}
        settings.check_path()
