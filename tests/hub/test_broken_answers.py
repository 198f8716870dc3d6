"""A hub that answers nonsense ends in one sentence."""

from __future__ import annotations

from types import SimpleNamespace

import datasets
import huggingface_hub
import pytest

from mambabyte.data import HuggingFaceSource
from mambabyte.errors import UserError
from tests.hub import server

DEEP = "[" * 100_000 + "]" * 100_000
ENTRY = '{{"id": "emozilla/pg19", "siblings": [], "tags": [], "sha": {}}}'


@pytest.mark.parametrize(
    "answer",
    [
        *("", "[]", "{}", "null", "17", '"text"', "<html>", DEEP),
        *map(ENTRY.format, ("null", "5", "[]", '"../../../etc/passwd"', '"main"')),
    ],
    ids=lambda answer: answer[:80],
)
def test_an_entry_that_is_none(answer, hub, monkeypatch):
    def send_json(handler, content):
        handler.send_head(200, len(answer), {"Content-Type": "application/json"})
        handler.wfile.write(answer.encode())

    monkeypatch.setattr(server._Handler, "send_json", send_json)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.endpoint)
    with pytest.raises(UserError, match=r"the hub.*HF_ENDPOINT"):
        HuggingFaceSource(name=hub.name, retries=0).identity()


@pytest.fixture
def source(monkeypatch):
    """A source whose train split is one file of the hub."""
    files = {"train": ["hf://datasets/owner/set@0/train.parquet"]}
    builder = SimpleNamespace(config=SimpleNamespace(data_files=files))
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *arguments, **options: builder)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *arguments, **options: None)
    return HuggingFaceSource(name="owner/set", revision="0" * 40, retries=0)


@pytest.mark.parametrize("size", [None, "many", "12", -1, 1.5, True, [1]])
def test_a_size_that_is_none(size, source, monkeypatch):
    monkeypatch.setattr(huggingface_hub.HfFileSystem, "info", lambda *arguments: {"size": size})
    with pytest.raises(UserError, match=r"hub says that hf://.*train\.parquet has .* bytes;"):
        source.units("train")


@pytest.mark.parametrize("error", [TypeError, KeyError, IndexError, AttributeError, RecursionError])
def test_a_list_of_files_that_is_none(error, source, monkeypatch):
    """These are what the libraries raise for lists, maps, numbers and null where they expect another."""

    def fail(*arguments, **options):
        raise error("sha")

    monkeypatch.setattr(huggingface_hub.HfFileSystem, "info", lambda *arguments: {})
    with pytest.raises(UserError, match=r"about hf://.* has no known form"):
        source.units("train")
    monkeypatch.setattr(datasets, "load_dataset_builder", fail)
    fresh = HuggingFaceSource(name="owner/set", revision="0" * 40, retries=0)
    for read in (fresh.units, lambda split: list(fresh.documents(split))):
        with pytest.raises(UserError, match="about the list of files of owner/set has no known form"):
            read("train")
