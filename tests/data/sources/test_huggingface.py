from __future__ import annotations

import json
import os
from types import SimpleNamespace

import datasets
import huggingface_hub
import pyarrow
import pyarrow.parquet
import pytest

from mambabyte.data import HuggingFaceSource
from mambabyte.data.sources.parquet import RowGroup
from mambabyte.data.windows.streaming import StreamingSource
from mambabyte.errors import UserError

ROWS = 40


@pytest.fixture
def folder(tmp_path):
    """PG19's layout: a folder of <split>-xxxxx-of-xxxxx.parquet, train in two shards."""
    for split, rows in {
        "train-00000-of-00002": range(0, 25),
        "train-00001-of-00002": range(25, ROWS),
        "validation-00000-of-00001": range(100, 103),
    }.items():
        table = pyarrow.table(
            {"title": [str(row) for row in rows], "text": [f"text {row} é" for row in rows]}
        )
        pyarrow.parquet.write_table(table, tmp_path / f"{split}.parquet", row_group_size=7)
    return tmp_path


@pytest.fixture
def hub(monkeypatch):
    """hub(error or files) -> a source whose load_dataset_builder raises the error or finds the files."""

    def answer(found):
        def load_dataset(*arguments, **options):
            if isinstance(found, Exception):
                raise found
            return SimpleNamespace(config=SimpleNamespace(data_files=found))

        monkeypatch.setattr(datasets, "load_dataset_builder", load_dataset)
        monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *arguments, **options: None)
        return HuggingFaceSource(name="owner/set", revision="0" * 40, retries=0)

    return answer


def expected(row):
    return f"text {row} é".encode()


@pytest.mark.parametrize("download", [False, True])
def test_skips_documents_without_reading_their_row_groups(download, folder, monkeypatch):
    read = []
    documents = RowGroup.documents
    monkeypatch.setattr(RowGroup, "documents", lambda group: read.append(group) or documents(group))
    source = HuggingFaceSource(path=str(folder), download=download)
    whole = list(source.documents("train"))
    for count in (0, 6, 7, 25, 26, ROWS, ROWS + 1):
        read.clear()
        assert list(source.documents_after("train", count)) == whole[count:]
        ends = [7, 14, 21, 25, 32, 39, 40]  # of the row groups
        assert len(read) == (sum(end > count for end in ends) if not download else 0)


def test_expected_bytes_of_local_files(folder):
    source = HuggingFaceSource(path=str(folder))
    held = sum(len(document.data) for document in source.documents("train"))
    # parquet adds 4 bytes a row and page headers to these short texts
    assert held <= source.expected_bytes("train") < 4 * held
    assert HuggingFaceSource(name="owner/set").expected_bytes("train") is None


@pytest.mark.parametrize("place", [".", "data", "*.parquet"])
def test_local_parquet(place, folder):
    path = folder
    if place == "data":
        path = folder.parent / "clone"
        path.mkdir()
        folder.rename(path / "data")
    source = HuggingFaceSource(path=str(path / place if "*" in place else path))
    documents = list(source.documents("train"))
    assert [document.data for document in documents] == [expected(row) for row in range(ROWS)]
    assert [document.name for document in documents][:2] == ["train:0", "train:1"]
    assert [document.data for document in source.documents("validation")] == [
        expected(row) for row in (100, 101, 102)
    ]


def test_a_download_has_the_same_documents(folder, monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    cached = HuggingFaceSource(path=str(folder), download=True)
    streamed = HuggingFaceSource(path=str(folder))
    assert list(cached.documents("train")) == list(streamed.documents("train"))


def test_units_are_row_groups_in_order(folder):
    groups = HuggingFaceSource(path=str(folder)).units("train")
    assert [group.number for group in groups] == [0, 1, 2, 3, 0, 1, 2]
    assert [text.tobytes() for group in groups for text in group.documents()] == [
        expected(row) for row in range(ROWS)
    ]
    assert isinstance(HuggingFaceSource(path=str(folder)), StreamingSource)


def test_units_of_the_hub(hub):
    """What the loopback hub of tests/hub does not cover: other formats, and a missing split."""
    source = hub({"train": ["hf://datasets/owner/set@0/train.jsonl"]})
    with pytest.raises(UserError, match=r"'owner/set' is not published as parquet .*data\.streaming=false"):
        source.units("train")
    with pytest.raises(UserError, match="split 'test'"):
        source.units("test")


def test_identity_sees_files_and_fields(folder):
    identity = HuggingFaceSource(path=str(folder)).identity()
    assert json.loads(json.dumps(identity)) == identity
    assert HuggingFaceSource(path=str(folder), text_column="title").identity() != identity
    (folder / "validation-00000-of-00001.parquet").unlink()
    assert HuggingFaceSource(path=str(folder)).identity() != identity


def test_identity_of_a_split_is_that_of_its_files_content(folder):
    def identity(split):
        return HuggingFaceSource(path=str(folder)).identity_of(split)

    train, validation = identity("train"), identity("validation")
    path = folder / "validation-00000-of-00001.parquet"
    content, status = path.read_bytes(), path.stat()
    path.write_bytes(content.replace(b"text 100", b"text 999"))  # as long, at the same time
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert identity("train") == train
    assert identity("validation") != validation
    path.write_bytes(content)
    assert identity("validation") == validation


def test_a_split_is_the_files_of_exactly_its_name(tmp_path):
    names = "train-00000-of-00001", "train_sft-00000-of-00001", "train_gen", "training-notes", "train-old"
    for name in (*names, "sft-00000-of-00002-09ab", "sft-00001-of-00002-cd87"):
        pyarrow.parquet.write_table(pyarrow.table({"text": [name]}), tmp_path / f"{name}.parquet")

    def texts(name, path=tmp_path):
        source = HuggingFaceSource(path=str(path), split_names={"train": name})
        return [document.data.decode() for document in source.documents("train")]

    assert texts("train") == texts("train", tmp_path / "*.parquet") == [names[0]]
    assert texts("train_sft") == [names[1]]
    assert texts("sft") == ["sft-00000-of-00002-09ab", "sft-00001-of-00002-cd87"]
    with pytest.raises(UserError, match=r"called dev\.parquet .*it has sft, train, train-old, train_gen, tr"):
        texts("dev")


@pytest.mark.parametrize("path", ["", "*.parquet", "train-00000*"])
def test_a_missing_shard_is_named(path, folder):
    (folder / "train-00001-of-00002.parquet").unlink()
    source = HuggingFaceSource(path=str(folder / path))
    with pytest.raises(
        UserError, match=r"holds 1 of the 2 parquet files .* split train .* without number 1;"
    ):
        list(source.documents("train"))


def test_identity_of_a_hub_revision(monkeypatch):
    class Info:
        sha = "a" * 40

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *arguments, **options: Info)
    assert HuggingFaceSource(name="owner/set").identity()["revision"] == "a" * 40
    # For a commit, the hub is not asked.
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", None)
    assert HuggingFaceSource(name="owner/set", revision="b" * 40).identity()["revision"] == "b" * 40


def test_missing_column_names_those_that_exist(folder):
    with pytest.raises(UserError, match="one of: title, text"):
        list(HuggingFaceSource(path=str(folder), text_column="body").documents("train"))


def test_missing_split(folder):
    source = HuggingFaceSource(path=str(folder))
    with pytest.raises(UserError, match=r"called test\.parquet"):
        list(source.documents("test"))
    with pytest.raises(UserError, match="has splits train, not 'test'"):
        list(HuggingFaceSource(path=str(folder), split_names={"train": "train"}).documents("test"))
    with pytest.raises(UserError, match=r"there is no file or folder '.*nowhere' \(data\.path\)"):
        HuggingFaceSource(path=str(folder / "nowhere")).identity()
    with pytest.raises(UserError, match="no parquet files"):
        HuggingFaceSource(path=str(folder / "nowhere*")).identity()


def test_damaged_parquet_is_one_sentence(folder):
    for file in folder.iterdir():
        file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(UserError, match="cannot read"):
        list(HuggingFaceSource(path=str(folder)).documents("train"))


def test_data_set_published_as_a_script(hub):
    source = hub(RuntimeError("Dataset scripts are no longer supported, but found pg19.py"))
    with pytest.raises(UserError, match="emozilla/pg19"):
        list(source.documents("train"))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ConnectionError("Couldn't reach the hub"), r"gave up on the list of files of owner/set .* the hub"),
        (
            huggingface_hub.errors.OfflineModeIsEnabled("offline"),
            r"cannot reach the .* hub .* data\.path=",
        ),
        (
            datasets.exceptions.DatasetNotFoundError("Dataset 'owner/set' doesn't exist"),
            "no data set 'owner/set'",
        ),
        (ValueError('Unknown split "train". Should be one of [...]'), "Unknown split"),
    ],
)
def test_hub_errors_are_one_sentence(error, message, hub):
    source = hub(error)
    for read in (source.documents, source.units):
        with pytest.raises(UserError, match=message):
            list(read("train"))


def test_unknown_errors_keep_their_traceback(hub):
    with pytest.raises(RuntimeError, match="something else"):
        list(hub(RuntimeError("something else")).documents("train"))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"name": ["a"]},
        {"path": "x", "text_column": ["text"]},
        {"path": "x", "download": "maybe"},
        {"path": "x", "split_names": {"dev": "validation"}},
        {"path": "x", "retries": -1},
        {"path": "x", "retries": "often"},
    ],
)
def test_ill_typed_settings(options):
    with pytest.raises(UserError, match=r"data\."):
        HuggingFaceSource(**options)
