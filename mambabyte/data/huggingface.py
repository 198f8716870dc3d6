"""Documents from a data set of the Hugging Face hub, or from a local folder of its parquet files."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from mambabyte.data.documents import SPLITS, Document
from mambabyte.data.files import missing_column, text_bytes
from mambabyte.errors import UserError


class HuggingFaceSource:
    """One document per row, the column text_column.

    name: a data set of the hub, with its configuration and revision; or path: a local folder, in which (or in
    whose data/) <split>*.parquet are looked for, or a glob of parquet files whose names begin with the split.
    split_names: what train, validation and test are called there.
    streaming: read rows as they come; false downloads to the datasets library's cache first.
    """

    def __init__(
        self,
        name: str | None = None,
        path: str | None = None,
        revision: str | None = None,
        configuration: str | None = None,
        text_column: str = "text",
        streaming: bool = True,
        split_names: dict[str, str] | None = None,
    ) -> None:
        texts = {
            "name": name,
            "path": path,
            "revision": revision,
            "configuration": configuration,
            "text_column": text_column,
        }
        for field, value in texts.items():
            if value is not None and not isinstance(value, str):
                raise UserError(f"data.{field} must be text, not {value!r}")
        if not isinstance(streaming, bool):
            raise UserError(f"data.source.streaming must be true or false, not {streaming!r}")
        if not name and not path:
            raise UserError(
                "give data.name=<data set of the hub> or data.path=<local folder of parquet files>"
            )
        split_names = split_names if split_names is not None else {split: split for split in SPLITS}
        if not isinstance(split_names, dict) or not set(split_names) <= set(SPLITS):
            raise UserError(
                f"data.source.split_names must map {', '.join(SPLITS)} to names, not {split_names!r}"
            )
        self.name = name
        self.path = path  # wins over name: a local copy needs no network
        self.revision = revision
        self.configuration = configuration
        self.text_column = text_column
        self.streaming = streaming
        self.split_names = split_names

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self.split_names)

    def documents(self, split: str) -> Iterator[Document]:
        with self._explaining():
            for row, record in enumerate(self._load(split, self.streaming)):
                yield Document(f"{split}:{row}", self._text(record))

    def stream(
        self, split: str, cursor: dict[str, Any] | None = None
    ) -> Iterator[tuple[bytes, dict[str, Any]]]:
        """Yield (document, cursor), keeping no copy; a stream from a cursor begins with its document."""
        with self._explaining():
            rows = self._load(split, streaming=True)
            if cursor is not None:
                rows.load_state_dict(cursor)
            records = iter(rows)
            # Before the first row there is no state to ask for: an iterator makes its own when it starts.
            place = cursor if cursor is not None else rows.state_dict()
            for record in records:
                yield self._text(record), place
                place = rows.state_dict()

    def identity(self) -> dict[str, Any]:
        identity: dict[str, Any] = {
            "source": "HuggingFaceSource",
            "text_column": self.text_column,
            "split_names": self.split_names,
        }
        if self.path:
            files = {
                file for split in self.split_names for file in self._parquet_files(split, required=False)
            }
            if not files:
                raise UserError(f"data.path {self.path!r} holds no parquet files named after a split")
            status = [(os.path.basename(file), os.stat(file)) for file in sorted(files)]
            return {**identity, "files": [[name, stat.st_size, stat.st_mtime_ns] for name, stat in status]}
        return {
            **identity,
            "name": self.name,
            "configuration": self.configuration,
            "revision": self._commit,
        }

    def _text(self, record: dict[str, Any]) -> bytes:
        where = self.path or self.name or ""
        if self.text_column not in record:
            raise missing_column(self.text_column, list(record), where)
        return text_bytes(record[self.text_column], self.text_column, where)

    def _load(self, split: str, streaming: bool) -> Any:
        from datasets import load_dataset

        if split not in self.split_names:
            raise UserError(f"this data has splits {', '.join(self.split_names)}, not {split!r}")
        if self.path:
            files = self._parquet_files(split, required=True)
            return load_dataset("parquet", data_files={split: files}, split=split, streaming=streaming)
        return load_dataset(
            self.name,
            self.configuration,
            revision=self._commit,
            split=self.split_names[split],
            streaming=streaming,
        )

    def _parquet_files(self, split: str, required: bool) -> list[str]:
        prefix = self.split_names[split]
        path = os.path.abspath(os.path.expanduser(str(self.path)))
        if os.path.isdir(path):
            files = [file for folder in (".", "data") for file in Path(path, folder).glob("*.parquet")]
        else:
            files = [Path(file) for file in glob.glob(path, recursive=True) if file.endswith(".parquet")]
        matching = sorted(str(file) for file in files if file.name.startswith(prefix))
        if required and not matching:
            raise UserError(
                f"data.path {self.path!r} holds no parquet file whose name begins with {prefix!r}"
            )
        return matching

    @cached_property
    def _commit(self) -> str:
        """The commit that the revision stands for today: names and branches move, commits do not."""
        if self.revision and re.fullmatch(r"[0-9a-f]{40}", self.revision):
            return self.revision
        from huggingface_hub import HfApi

        with self._explaining():
            return str(HfApi().dataset_info(str(self.name), revision=self.revision).sha)

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            explanation = self._explanation(error)
            if explanation is None:
                raise
            raise UserError(explanation) from error

    def _explanation(self, error: Exception) -> str | None:
        """What the user can do about an error of the datasets library; None if it is not one we know."""
        where = self.path or self.name
        # By name: the HTTP client, and with it the class of network errors, changes with the hub's releases.
        kinds = {kind.__name__ for kind in type(error).__mro__}
        if kinds & {"DatasetNotFoundError", "RepositoryNotFoundError", "RevisionNotFoundError"}:
            revision = self.revision or "main"
            return f"the hub has no data set {self.name!r} with revision {revision}, or it asks for a login"
        if kinds & {"ConnectionError", "TimeoutError", "TransportError", "OfflineModeIsEnabled"}:
            return (
                f"cannot reach the Hugging Face hub for {where!r}: go online, or give data.path=<folder of "
                "its parquet files>; what was prepared before opens offline with data.revision=<its commit>"
            )
        if "Dataset scripts are no longer supported" in str(error):
            return (
                f"{where!r} is published as a script, which the datasets library no longer runs; use a data "
                "set of parquet files instead, such as data.name=emozilla/pg19 for PG19"
            )
        if kinds & {"OSError", "ValueError", "DatasetsError", "HTTPError", "DatasetGenerationError"}:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            return f"cannot read {where!r}: {reason}"
        return None
