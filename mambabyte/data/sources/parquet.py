"""Parquet files, local or of the hub, read one column of one row group at a time."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from mambabyte.data.sources.columns import cells, check_text_type, missing_column
from mambabyte.data.sources.opening import explaining_read_errors, refuse_pointer
from mambabyte.data.sources.retries import TEMPORARY_STATUS, retrying
from mambabyte.errors import UserError

_FOOTER_GUESS = 1 << 16  # bytes; most footers are smaller, so one request finds them
_BATCH_BYTES = 1 << 22  # of text decoded at a time
_BATCH_ROWS = 1024
_CONNECTIONS = 16


class Shard(Protocol):
    """A file of ``size`` bytes with random access."""

    @property
    def name(self) -> str: ...

    @property
    def size(self) -> int: ...

    def read(self, start: int, end: int) -> bytes | bytearray:
        """Bytes [start, end), or UserError."""
        ...


@dataclass(frozen=True)
class LocalShard:
    path: str

    @property
    def name(self) -> str:
        return os.path.basename(self.path)

    @property
    def size(self) -> int:
        with explaining_read_errors(self.path):
            return os.stat(self.path).st_size

    def read(self, start: int, end: int) -> bytes:
        with explaining_read_errors(self.path), open(self.path, "rb") as file:
            file.seek(start)
            data = file.read(end - start)
        if len(data) < end - start:
            raise UserError(f"{self.path} became shorter while it was read; use files that do not change")
        return data


@dataclass(frozen=True)
class HubShard:
    """A file of the hub; its ``url`` is that at one commit."""

    name: str
    url: str
    size: int
    retries: int

    def read(self, start: int, end: int) -> bytearray:
        """See Shard. What has arrived when a connection breaks is not requested again."""
        data = bytearray()
        while len(data) < end - start:
            for attempt in retrying(self.name, self.retries):
                before = len(data)
                with attempt:
                    self._receive(data, start + before, end)
                if len(data) > before:
                    attempt.retry_state.attempt_number = 1  # only failures in a row count
        if len(data) > end - start:
            raise UserError(f"the hub sent more of {self.name} than was asked for; try another network")
        return data

    def _receive(self, data: bytearray, start: int, end: int) -> None:
        """Request bytes [start, end) and append them to data as they arrive."""
        from huggingface_hub import constants, get_session
        from huggingface_hub.utils import build_hf_headers

        headers = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
        before = len(data)
        with get_session().stream(
            "GET",
            self.url,
            headers={**build_hf_headers(), **headers},
            timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
            follow_redirects=True,
        ) as answer:
            self._check(answer)
            for piece in answer.iter_bytes():
                data += piece
        if len(data) == before:
            raise ConnectionError("the hub sent nothing")

    def _check(self, answer: Any) -> None:
        total = answer.headers.get("Content-Range", "").rpartition("/")[2]
        if total.isdigit() and int(total) != self.size:
            raise UserError(
                f"{self.name} has {total} bytes on the hub, not the {self.size} that its list of files says: "
                "it is truncated or being replaced; repeat the command when it is whole"
            )
        if 400 <= answer.status_code < 500 and answer.status_code not in TEMPORARY_STATUS:
            raise UserError(
                f"the hub answers HTTP {answer.status_code} for {self.name}: it is gone, or asks for a login "
                "(HF_TOKEN)"
            )
        answer.raise_for_status()
        if answer.status_code != 206:
            raise UserError(
                f"the hub sent all of {self.name} when asked for a part (HTTP {answer.status_code}); "
                "use data.streaming=false"
            )


@dataclass(frozen=True, eq=False)
class RowGroup:
    """The text column of one row group of a shard, a streaming.Unit. Each row is a document."""

    shard: Shard
    number: int
    column: str
    footer: str  # sha256 of the shard's footer, which holds all its sizes, offsets and statistics
    metadata: Any  # pyarrow.parquet.FileMetaData

    @property
    def identity(self) -> list[Any]:
        """Plain JSON that changes when the shard does."""
        return [self.shard.name, self.shard.size, self.footer, self.number]

    @property
    def num_rows(self) -> int:
        return self.metadata.row_group(self.number).num_rows

    @property
    def num_bytes(self) -> int:
        """Roughly, of text: the uncompressed size of the column."""
        return self._chunk().total_uncompressed_size

    def batches(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (data, offsets): document i of the batch is data[offsets[i]:offsets[i + 1]], uint8, unchanged
        whether valid UTF-8 or not. A missing value is an empty document."""
        from pyarrow.parquet import ParquetFile

        start, end = self.byte_range()
        chunk = _PartialFile(self.shard.read(start, end), start, self.shard.size)
        with explaining_read_errors(self.shard.name):
            # Buffered, or pyarrow would copy the whole chunk.
            file = ParquetFile(chunk, metadata=self.metadata, buffer_size=1 << 20)
            batches = file.iter_batches(self._rows_at_once(), [self.number], [self.column], use_threads=False)
        while True:
            with explaining_read_errors(self.shard.name):
                batch = next(batches, None)
                if batch is None:
                    return
                data, offsets = cells(batch.column(0))
            yield data, offsets

    def documents(self) -> Iterator[np.ndarray]:
        """Yield each row's bytes as a uint8 array."""
        for data, offsets in self.batches():
            for start, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
                yield data[start:end]

    def _chunk(self) -> Any:
        group = self.metadata.row_group(self.number)
        columns = map(group.column, range(group.num_columns))
        return next(column for column in columns if column.path_in_schema == self.column)

    def byte_range(self) -> tuple[int, int]:
        """Where the column of this row group lies in the shard: bytes [start, end)."""
        chunk = self._chunk()
        start = chunk.data_page_offset
        if chunk.has_dictionary_page and chunk.dictionary_page_offset:
            start = min(start, chunk.dictionary_page_offset)
        return start, start + chunk.total_compressed_size

    def _rows_at_once(self) -> int:
        rows = self.metadata.row_group(self.number).num_rows
        row_bytes = max(self._chunk().total_uncompressed_size // max(rows, 1), 1)
        return min(max(_BATCH_BYTES // row_bytes, 1), _BATCH_ROWS)


def row_groups(shard: Shard, column: str) -> list[RowGroup]:
    """The row groups of a shard, in order; only its footer is read."""
    import pyarrow
    from pyarrow.parquet import read_metadata

    footer = _footer(shard)
    with explaining_read_errors(shard.name):
        metadata = read_metadata(pyarrow.BufferReader(b"PAR1" + footer))
        schema = metadata.schema.to_arrow_schema()
    if column not in schema.names:
        raise missing_column(column, schema.names, shard.name)
    check_text_type(schema.field(column).type, column, shard.name)
    digest = hashlib.sha256(footer).hexdigest()
    return [
        RowGroup(shard, number, column, digest, metadata)
        for number in range(metadata.num_row_groups)
        if metadata.row_group(number).num_rows
    ]


def all_row_groups(shards: Iterable[Shard], column: str) -> list[RowGroup]:
    """The row groups of all shards, in order; their footers are read in parallel."""
    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        found = list(pool.map(lambda shard: row_groups(shard, column), shards))
    return [group for groups in found for group in groups]


def _footer(shard: Shard) -> bytes:
    """The end of a parquet file: its metadata, the length of these in 4 bytes, and PAR1."""
    size = shard.size
    tail = bytes(shard.read(max(size - _FOOTER_GUESS, 0), size))
    refuse_pointer(shard.name, tail)
    length = int.from_bytes(tail[-8:-4], "little") + 8
    if tail[-4:] != b"PAR1" or length > size:
        raise UserError(f"cannot read {shard.name}: it is not a whole parquet file; get it again")
    if length > len(tail):
        tail = bytes(shard.read(size - length, size - len(tail))) + tail
    return tail[-length:]


class _PartialFile(io.RawIOBase):
    """A file of ``size`` bytes of which only ``data``, from ``start`` on, has been read."""

    def __init__(self, data: bytes | bytearray, start: int, size: int) -> None:
        self._data, self._start, self._size = memoryview(data), start, size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int = -1) -> bytes:
        begin = self._position - self._start
        end = len(self._data) if size < 0 else min(begin + size, len(self._data))
        if begin < 0 or begin > end:
            raise OSError("its row groups do not lie where its footer says")
        self._position += end - begin
        return self._data[begin:end].tobytes()
