"""Cells of text columns as bytes, wherever the columns come from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from mambabyte.errors import UserError


def missing_column(column: str, columns: Iterable[Any], where: str) -> UserError:
    """The error about a missing text column, which lists the existing ones."""
    known = ", ".join(map(str, columns)) or "none"
    return UserError(f"{where} has no column {column!r}; set data.text_column to one of: {known}")


def text_bytes(value: Any, column: str, where: str) -> bytes:
    """A Python value as bytes: text in UTF-8, bytes unchanged, a missing value as no bytes."""
    if value is None:
        return b""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    raise UserError(f"column {column!r} of {where} holds {type(value).__name__}, not text")


def check_text_type(kind: Any, column: str, where: str) -> None:
    """Raise UserError if an Arrow type is none of those that :func:`cells` takes."""
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    checks = [types.is_string, types.is_large_string, types.is_string_view, types.is_null]
    checks += [types.is_binary, types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary]
    if not any(check(kind) for check in checks):
        raise UserError(f"column {column!r} of {where} holds {kind}, not text; set data.text_column")


def cells(column: Any) -> tuple[np.ndarray, np.ndarray]:
    """(data, offsets) of an Arrow array of text or bytes, in whichever encoding: cell i is the uint8 array
    data[offsets[i]:offsets[i + 1]], unchanged whether valid UTF-8 or not; empty where a value is missing."""
    import pyarrow

    if pyarrow.types.is_dictionary(column.type):
        # Not dictionary_decode(), whose text can be too long for 32-bit offsets.
        column = column.dictionary.cast(pyarrow.large_binary()).take(column.indices)
    column = column.cast(pyarrow.large_binary())
    column = column.fill_null(b"") if column.null_count else column
    _, positions, data = column.buffers()
    offsets = np.frombuffer(positions, np.int64)[column.offset : column.offset + len(column) + 1]
    return np.frombuffer(data if data is not None else b"", np.uint8), offsets
