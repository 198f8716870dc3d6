from __future__ import annotations

import json
import pickle

import pyarrow
import pyarrow.parquet
import pytest

from mambabyte.data import FilesSource, HuggingFaceSource
from mambabyte.data.sources.parquet import LocalShard, all_row_groups, row_groups
from mambabyte.errors import UserError

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 123456789\n"


class CountingShard(LocalShard):
    """Records which bytes are read."""

    def read(self, start, end):
        reads.append((start, end))
        return super().read(start, end)


reads: list[tuple[int, int]] = []


def write(path, column, row_group_size=5, **options):
    table = pyarrow.table({"title": ["t" * 1000] * len(column), "text": column})
    pyarrow.parquet.write_table(table, path, row_group_size=row_group_size, **options)
    return LocalShard(str(path))


def contents(groups):
    return [document.tobytes() for group in groups for document in group.documents()]


@pytest.mark.parametrize("kind", ["string", "large_string", "binary", "large_binary"])
@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
@pytest.mark.parametrize("use_dictionary", [False, True])
def test_rows_of_every_kind_are_unchanged(kind, compression, use_dictionary, tmp_path):
    rows = ["a", "", "naïve ☃", "a", None, "long " * 3000, *map(str, range(20))]
    if "binary" in kind:
        rows = [row if row is None else row.encode() + b"\xff\xfe" for row in rows]
    column = pyarrow.array(rows, getattr(pyarrow, kind)())
    shard = write(tmp_path / "a.parquet", column, compression=compression, use_dictionary=use_dictionary)
    groups = row_groups(shard, "text")
    assert [group.number for group in groups] == [0, 1, 2, 3, 4, 5]
    expected = [b"" if row is None else row.encode() if isinstance(row, str) else row for row in rows]
    assert contents(groups) == expected
    assert contents(pickle.loads(pickle.dumps(groups[1:]))) == expected[5:]


@pytest.mark.parametrize(
    "column",
    [
        pyarrow.array(["a", None, "b", "a"]).dictionary_encode(),
        pyarrow.array([b"a", None, b"b", b"a"]).dictionary_encode(),
        pyarrow.array(["a", None, "b", "a"], pyarrow.string_view()),
        pyarrow.array([b"a", None, b"b", b"a"], pyarrow.binary_view()),
        pyarrow.array([b"a", None, b"b", b"a"], pyarrow.binary(1)),
        pyarrow.array(["x", "a", None, "b", "a"])[1:],
    ],
    ids=lambda column: str(column.type),
)
def test_text_in_every_encoding_of_arrow_is_read_by_every_source(column, tmp_path):
    shard = write(tmp_path / "train.parquet", column)
    expected = [b"a", b"", b"b", b"a"]
    assert contents(row_groups(shard, "text")) == expected
    for source in (
        FilesSource(str(tmp_path), 0),
        HuggingFaceSource(path=str(tmp_path)),
        HuggingFaceSource(path=str(tmp_path), download=True),
    ):
        assert [document.data for document in source.documents("train")] == expected


def test_a_column_without_any_value_holds_empty_documents(tmp_path):
    shard = write(tmp_path / "a.parquet", pyarrow.nulls(2))
    assert contents(row_groups(shard, "text")) == [b"", b""]


def test_a_git_lfs_pointer_is_named(tmp_path):
    (tmp_path / "a.parquet").write_text(POINTER)
    with pytest.raises(UserError, match=r"a\.parquet is a git-lfs pointer, .*git lfs pull"):
        row_groups(LocalShard(str(tmp_path / "a.parquet")), "text")


def test_invalid_utf8_in_a_text_column_passes_through(tmp_path):
    rows = pyarrow.array([b"\xff\xfe", b"ok", b"\xc3"]).view(pyarrow.string())
    assert contents(row_groups(write(tmp_path / "a.parquet", rows), "text")) == [b"\xff\xfe", b"ok", b"\xc3"]


def test_only_the_column_of_the_row_group_is_read(tmp_path):
    """Peak memory holds one column chunk and what is decoded at a time, however large the file."""
    texts = [str(number) * 40_000 for number in range(10, 50)]
    path = tmp_path / "a.parquet"
    write(path, texts, row_group_size=10, compression="none", use_dictionary=False)
    shard = CountingShard(str(path))
    groups = row_groups(shard, "text")
    reads.clear()
    before = pyarrow.total_allocated_bytes()
    largest = 0
    for number, document in enumerate(groups[2].documents()):
        assert document.tobytes() == texts[20 + number].encode()
        largest = max(largest, pyarrow.total_allocated_bytes() - before)
    [(start, end)] = reads
    assert 10 * 80_000 <= end - start <= 10 * 80_000 + 1000
    assert shard.size > 3.9 * (end - start)
    assert largest < 2.5 * (end - start)


def test_a_large_row_group_is_decoded_page_by_page(tmp_path):
    texts = ["x" * 500_000 + str(number) for number in range(100)]  # 50 MB, hardly anything compressed
    pages = {"write_batch_size": 4, "use_dictionary": False, "compression": "zstd"}
    shard = write(tmp_path / "a.parquet", texts, row_group_size=100, **pages)
    [group] = row_groups(shard, "text")
    before, largest = pyarrow.total_allocated_bytes(), 0
    for number, document in enumerate(group.documents()):
        assert document[500_000:].tobytes() == str(number).encode()
        largest = max(largest, pyarrow.total_allocated_bytes() - before)
    assert largest < 20e6


def test_footers_of_all_shards_in_their_order(tmp_path):
    shards = [write(tmp_path / f"{n}.parquet", [f"{n}-{row}" for row in range(7)]) for n in range(30)]
    groups = all_row_groups(shards, "text")
    assert [(group.shard.name, group.number) for group in groups] == [
        (f"{n}.parquet", number) for n in range(30) for number in (0, 1)
    ]
    assert contents(groups[2:4]) == [f"1-{row}".encode() for row in range(7)]


def test_a_footer_longer_than_the_first_guess(tmp_path):
    shard = write(tmp_path / "a.parquet", [str(row) for row in range(1500)], row_group_size=1)
    assert shard.size - row_groups(shard, "text")[-1].byte_range()[1] > 1 << 16
    assert contents(row_groups(shard, "text")[-2:]) == [b"1498", b"1499"]


def test_identity_changes_with_the_shard(tmp_path):
    def identity(rows):
        return [group.identity for group in row_groups(write(tmp_path / "a.parquet", rows), "text")]

    first = identity(["some", "text"])
    assert json.loads(json.dumps(first)) == first
    assert identity(["some", "text"]) == first
    assert identity(["same", "size"]) != first


def test_an_incomplete_parquet_file_is_one_sentence(tmp_path):
    shard = write(tmp_path / "a.parquet", ["text"] * 10)
    whole = (tmp_path / "a.parquet").read_bytes()
    for broken in (b"", b"PAR1", whole[:-5], whole[: len(whole) // 2]):
        (tmp_path / "a.parquet").write_bytes(broken)
        with pytest.raises(UserError, match=r"cannot read a\.parquet: it is not a whole parquet file"):
            row_groups(shard, "text")
    (tmp_path / "a.parquet").write_bytes(b"PAR1" + bytes(len(whole) - 12) + whole[-8:])
    with pytest.raises(UserError, match=r"cannot read a\.parquet: "):
        row_groups(shard, "text")


def test_damaged_pages_are_one_sentence(tmp_path):
    shard = write(tmp_path / "a.parquet", ["text " * 100] * 10, compression="snappy")
    groups = row_groups(shard, "text")
    start, end = groups[1].byte_range()
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    content[start:end] = bytes(end - start)
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(UserError, match=r"cannot read a\.parquet: "):
        contents(groups)
    (tmp_path / "a.parquet").write_bytes(content[:10])
    with pytest.raises(UserError, match="became shorter"):
        contents(groups)
    (tmp_path / "a.parquet").unlink()
    with pytest.raises(UserError, match="No such file"):
        contents(groups)


def test_columns_that_hold_no_text(tmp_path):
    shard = write(tmp_path / "a.parquet", [1, 2])
    with pytest.raises(UserError, match=r"holds int64, not text; set data\.text_column"):
        row_groups(shard, "text")
    with pytest.raises(UserError, match="one of: title, text"):
        row_groups(shard, "body")


def test_empty_row_groups_are_no_units(tmp_path):
    assert row_groups(write(tmp_path / "a.parquet", pyarrow.array([], pyarrow.string())), "text") == []
