from __future__ import annotations

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from mambabyte.data import FilesSource, StandardLibrarySource, source_from_config
from mambabyte.data.sources.documents import held_out
from mambabyte.errors import UserError


def everything(source, split="train"):
    return {document.name: document.data for document in source.documents(split)}


def all_of(path, **options):
    return everything(FilesSource(str(path), validation_fraction=0, **options))


def write_parquet(path, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


def test_standard_library_holds_out_whole_files():
    source = StandardLibrarySource()
    train, validation = everything(source), everything(source, "validation")
    assert len(train) > 300
    assert len(validation) > 5
    assert train.keys().isdisjoint(validation)
    assert "argparse.py" in train | validation
    assert "json/decoder.py" in train | validation
    assert list(train) == sorted(train)
    for name in train | validation:
        assert name.endswith(".py")
        assert not {"test", "tests", "site-packages"} & set(name.split("/"))
        assert not name.startswith("_sysconfigdata")


def test_standard_library_identity_is_stable_and_sees_the_fraction():
    identity = StandardLibrarySource().identity()
    assert StandardLibrarySource().identity() == identity == json.loads(json.dumps(identity))
    assert StandardLibrarySource(0.1).identity() != identity


def test_standard_library_has_no_test_split():
    with pytest.raises(UserError, match="train and validation"):
        everything(StandardLibrarySource(), "test")


def test_files_are_read_unchanged_whatever_they_are(tmp_path):
    data = bytes(range(256)) * 3
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "raw.bin").write_bytes(data)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(data))
    frames = zstandard.compress(data[:100]) + zstandard.compress(data[100:])
    (tmp_path / "b.txt.zst").write_bytes(frames)
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / ".hidden").write_bytes(b"no")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_bytes(b"no")
    documents = all_of(tmp_path)
    assert documents == {"a.txt.gz": data, "b.txt.zst": data, "sub/raw.bin": data}
    assert list(documents) == sorted(documents)


def test_rows_are_documents(tmp_path):
    texts = ["one", "zwei ä", "\ud800 lone surrogate", ""]
    lines = "".join(json.dumps({"text": text, "n": 1}) + "\n" for text in texts) + "\n"
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "c.jsonl.zst").write_bytes(zstandard.compress(lines.encode()))
    write_parquet(tmp_path / "d.parquet", text=["eins", None, "drei"], other=[1, 2, 3])
    write_parquet(tmp_path / "e.parquet", text=[b"\xff\x00", b"x", b"y"])
    encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
    expected = {
        f"{file}:{row}": data
        for file in ("a.jsonl", "b.jsonl.gz", "c.jsonl.zst")
        for row, data in enumerate(encoded)
    }
    expected |= {"d.parquet:0": b"eins", "d.parquet:1": b"", "d.parquet:2": b"drei"}
    expected |= {"e.parquet:0": b"\xff\x00", "e.parquet:1": b"x", "e.parquet:2": b"y"}
    assert all_of(tmp_path) == expected


def test_parquet_text_that_is_not_utf8_passes_through(tmp_path):
    invalid = pyarrow.array([b"\xff\xfe"], pyarrow.binary()).view(pyarrow.string())
    write_parquet(tmp_path / "a.parquet", text=invalid)
    assert all_of(tmp_path) == {"a.parquet:0": b"\xff\xfe"}


def test_path_may_be_a_file_a_glob_or_a_list(tmp_path):
    for name in ("a/1.txt", "a/2.md", "b/3.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert list(all_of(tmp_path / "a" / "1.txt")) == ["1.txt"]
    assert list(all_of(tmp_path / "**" / "*.txt")) == ["a/1.txt", "b/3.txt"]
    both = FilesSource([str(tmp_path / "b"), str(tmp_path / "a" / "*.md"), str(tmp_path / "b")], 0)
    assert list(everything(both)) == ["a/2.md", "b/3.txt"]


def test_prepared_data_below_the_path_is_not_a_document(tmp_path):
    from mambabyte.data import prepare

    (tmp_path / "a.txt").write_text("text")
    source = FilesSource(str(tmp_path), 0)
    identity = source.identity()
    prepare(source, "train", tmp_path / "prepared")
    assert source.identity() == identity
    assert list(everything(source)) == ["a.txt"]


def test_files_are_held_out_by_name(tmp_path):
    for number in range(200):
        (tmp_path / f"{number}.txt").write_text(str(number))
    source = FilesSource(str(tmp_path), 0.2)
    train, validation = everything(source), everything(source, "validation")
    assert len(train) + len(validation) == 200
    assert train.keys().isdisjoint(validation)
    assert 20 < len(validation) < 60  # 40 expected, standard deviation 5.7
    (tmp_path / "new.txt").write_text("new")
    assert everything(source, "validation").keys() - {"new.txt"} == validation.keys()
    whole = FilesSource(str(tmp_path), 1)
    assert len(everything(whole, "validation")) == 201
    assert not everything(whole)


def test_single_document_gives_its_tail(tmp_path):
    data = bytes(range(200))
    (tmp_path / "book.txt").write_bytes(data)
    source = FilesSource(str(tmp_path / "book.txt"), 0.1)
    assert everything(source) == {"book.txt": data[:180]}
    assert everything(source, "validation") == {"book.txt": data[180:]}


def test_few_documents_in_one_split_give_their_tails(tmp_path):
    names = [name for name in map(str, range(20)) if not held_out(name, 0.5)][:2]
    for name in names:
        (tmp_path / name).write_bytes(b"t" * 10 + b"v" * 10)
    source = FilesSource(str(tmp_path), 0.5)
    assert everything(source) == dict.fromkeys(names, b"t" * 10)
    assert everything(source, "validation") == dict.fromkeys(names, b"v" * 10)


def test_files_identity_sees_edits(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one")
    source = FilesSource(str(tmp_path))
    before = source.identity()
    assert json.loads(json.dumps(before)) == before
    path.write_text("two longer")
    assert source.identity() != before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt.gz", gzip.compress(bytes(1000), mtime=0)[:-12], "cannot read .*a.txt.gz"),
        ("a.txt.gz", b"not gzip", "cannot read .*a.txt.gz"),
        ("a.txt.zst", b"not zstd", "cannot read .*a.txt.zst"),
        ("a.parquet", b"not parquet", "cannot read .*a.parquet"),
        ("a.jsonl", b'{"text": "x"}\n{"text"', "line 2 of .*a.jsonl is not JSON"),
        ("a.jsonl", b'{"body": "x", "id": 1}', "text_column to one of: body, id"),
        ("a.jsonl", b'{"text": 5}', "holds int, not text"),
        ("a.jsonl", b"[1]", "no column 'text'"),
    ],
)
def test_unreadable_file_is_named(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        all_of(tmp_path)


def test_missing_parquet_column_names_those_that_exist(tmp_path):
    write_parquet(tmp_path / "a.parquet", title=["x"], body=["y"])
    with pytest.raises(UserError, match="one of: title, body"):
        all_of(tmp_path)
    assert all_of(tmp_path, text_column="body") == {"a.parquet:0": b"y"}


def test_missing_files(tmp_path):
    with pytest.raises(UserError, match="no file matches"):
        all_of(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no bytes"):
        all_of(tmp_path)
    (tmp_path / "a").write_text("text")
    with pytest.raises(UserError, match="train and validation"):
        everything(FilesSource(str(tmp_path)), "test")


@pytest.mark.parametrize(
    "options", [{"path": None}, {"path": []}, {"path": [None]}, {"path": "x", "text_column": ["text"]}]
)
def test_ill_typed_settings(options):
    with pytest.raises(UserError, match=r"data\."):
        FilesSource(**options)


def test_no_fraction_is_a_twentieth(tmp_path):
    (tmp_path / "book.txt").write_bytes(bytes(200))
    for source in (FilesSource(str(tmp_path)), FilesSource(str(tmp_path), None)):
        assert everything(source, "validation") == {"book.txt": bytes(10)}
        assert source.identity() == FilesSource(str(tmp_path), 0.05).identity()


def test_standard_library_needs_a_fraction():
    with pytest.raises(UserError, match=r"data.validation_fraction"):
        StandardLibrarySource(None)


@pytest.mark.parametrize("fraction", ["a", -0.1, 1.5, True])
def test_ill_typed_fraction(fraction):
    for source in (lambda: FilesSource("x", fraction), lambda: StandardLibrarySource(fraction)):
        with pytest.raises(UserError, match=r"data.validation_fraction"):
            source()


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (None, "_target_"),
        ({"path": "x"}, "_target_"),
        ({"_target_": "mambabyte.data.NoSource"}, "cannot be built"),
        ({"_target_": "mambabyte.data.FilesSource", "path": "x", "colour": 1}, "colour"),
        ({"_target_": "mambabyte.data.FilesSource", "path": None}, "data.path"),
    ],
)
def test_config_that_names_no_source(section, message):
    with pytest.raises(UserError, match=message):
        source_from_config(section)


def test_strange_config_runs_nothing(tmp_path):
    section = {"_target_": "pathlib.Path.touch", "_args_": [str(tmp_path / "ran")]}
    with pytest.raises(UserError, match="was not run"):
        source_from_config(section, only_ours=True)
    nested = {"_target_": "mambabyte.data.FilesSource", "_recursive_": True, "path": section}
    with pytest.raises(UserError):
        source_from_config(nested, only_ours=True)
    assert not (tmp_path / "ran").exists()
