"""Documents from a data set of the Hugging Face hub, or from a local folder of its parquet files."""

from __future__ import annotations

import glob
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from json import JSONDecodeError
from pathlib import Path
from typing import Any, ClassVar

from mambabyte.config.settings import Settings, setting
from mambabyte.data.sources.columns import missing_column, text_bytes
from mambabyte.data.sources.documents import SPLITS, Document
from mambabyte.data.sources.finding import glob_files, list_folder
from mambabyte.data.sources.opening import content_hashes
from mambabyte.data.sources.parquet import HubShard, LocalShard, RowGroup, Shard, all_row_groups, row_groups
from mambabyte.data.sources.retries import retrying
from mambabyte.errors import UserError

_TRY_LATER = "repeat the command later, or set HF_ENDPOINT to a hub that works"
# What follows the split in a file's name: nothing, or a number, perhaps of a count and with a hash.
_SHARD = r"(?:[-_.]?(?P<number>\d+)(?:-of-(?P<count>\d+))?(?:-[0-9a-f]+)?)?"


@dataclass
class HuggingFaceSource(Settings):
    """One document per row, the column text_column.

    Attributes:
        name: a data set of the hub.
        path: used instead of the hub: a folder with <split>.parquet or its numbered shards, there or in its
            data/, or a glob of such files.
        split_names: what train, validation and test are called there.
        download: have the datasets library download all of it to its cache first.
    """

    section: ClassVar[str] = "data"
    name: str | None = None
    path: str | None = None
    revision: str | None = None
    configuration: str | None = None
    text_column: str = "text"
    download: bool = setting(default=False, key="source.download")
    split_names: dict[str, str] = field(
        default_factory=lambda: {split: split for split in SPLITS}, metadata={"key": "source.split_names"}
    )
    retries: int = setting(default=8, at_least=0, at_most=10**4)

    def __post_init__(self) -> None:
        if not self.name and not self.path:
            raise UserError(
                "give data.name=<data set of the hub> or data.path=<local folder of parquet files>"
            )
        if not set(self.split_names) <= set(SPLITS):
            raise UserError(
                f"data.source.split_names must map {', '.join(SPLITS)} to names, not {self.split_names!r}"
            )

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self.split_names)

    def documents(self, split: str) -> Iterator[Document]:
        return self.documents_after(split, 0)

    def documents_after(self, split: str, count: int) -> Iterator[Document]:
        """The split without its first documents, whose row groups are not read."""
        with self._explaining():
            shards = None if self.download else self._shards(split)
            if shards is None:
                for row, record in enumerate(self._load(split)):
                    if row >= count:
                        yield Document(f"{split}:{row}", self._text(record))
                return
            row = 0
            for shard in shards:
                for group in row_groups(shard, self.text_column):
                    if row + group.num_rows <= count:
                        row += group.num_rows
                        continue
                    for data in group.documents():
                        if row >= count:
                            yield Document(f"{split}:{row}", data.tobytes())
                        row += 1

    def expected_bytes(self, split: str) -> int | None:
        """Roughly the size of a split of local files; None for the hub."""
        if self.download or not self.path:
            return None
        groups = all_row_groups(self._shards(split) or (), self.text_column)
        return sum(group.num_bytes for group in groups)

    def units(self, split: str) -> list[RowGroup]:
        """The row groups of the split's parquet files, for streaming; reads their footers."""
        with self._explaining():
            shards = self._shards(split)
            if shards is None:
                raise UserError(
                    f"{self.name!r} is not published as parquet files with a split "
                    f"{self.split_names[split]!r}, so it cannot be streamed; use data.streaming=false"
                )
            return all_row_groups(shards, self.text_column)

    def identity(self) -> dict[str, Any]:
        return self._identity(self.split_names)

    def identity_of(self, split: str) -> dict[str, Any]:
        """That of one split, so that streaming need not read the local files of the others beforehand; of all
        that there are if there is none of that name."""
        self._check_split(split)
        return self._identity(self.split_names if self.path and not self._parquet_files(split) else [split])

    def _identity(self, splits: Iterable[str]) -> dict[str, Any]:
        identity: dict[str, Any] = {
            "source": "HuggingFaceSource",
            "text_column": self.text_column,
            "split_names": self.split_names,
        }
        if self.path:
            files = sorted(file for split in splits for file in self._parquet_files(split))
            if not files:
                raise self._no_files(splits)
            names = map(os.path.basename, files)
            return {**identity, "files": list(map(list, zip(names, content_hashes(files), strict=True)))}
        return {**identity, "name": self.name, "configuration": self.configuration, "revision": self._commit}

    def _text(self, record: dict[str, Any]) -> bytes:
        where = self.path or self.name or ""
        if self.text_column not in record:
            raise missing_column(self.text_column, list(record), where)
        return text_bytes(record[self.text_column], self.text_column, where)

    def _shards(self, split: str) -> Sequence[Shard] | None:
        """The parquet files of a split; None if the hub has it in another format."""
        self._check_split(split)
        if self.path:
            return [LocalShard(file) for file in self._required_files(split)]
        urls = self._data_files.get(self.split_names[split], [])
        if not urls or not all(url.endswith(".parquet") for url in urls):
            return None
        from huggingface_hub import HfFileSystem

        hub = HfFileSystem()  # has cached the sizes with the listing

        def shard(url: str) -> HubShard:
            size = self._asked(url, lambda: hub.info(url)["size"])
            if type(size) is not int or size < 0:
                raise UserError(f"the hub says that {url} has {size!r} bytes; {_TRY_LATER}")
            name = url.partition("@")[2].partition("/")[2]
            return HubShard(name, str(hub.url(url)), size, self.retries)

        return list(map(shard, urls))

    @cached_property
    def _data_files(self) -> dict[str, list[str]]:
        """The hf:// URLs of each split's files at our commit, as the data set's card assigns them."""
        from datasets import load_dataset_builder

        def find() -> dict[str, list[str]]:
            # A request of our own comes first, since the library's explain failures less well.
            self._dataset_info(self._commit)
            builder = load_dataset_builder(str(self.name), self.configuration, revision=self._commit)
            return {name: list(map(str, files)) for name, files in (builder.config.data_files or {}).items()}

        return self._asked(f"the list of files of {self.name}", find)

    def _dataset_info(self, revision: str | None) -> Any:
        from huggingface_hub import HfApi

        def info() -> Any:
            return HfApi().dataset_info(str(self.name), revision=revision)

        return self._asked(f"the hub's entry of {self.name}", info)

    def _asked(self, what: str, ask: Callable[[], Any]) -> Any:
        """The hub's answer, from a library that takes for granted that it has the right form."""
        try:
            return retrying(what, self.retries, first_contact=True)(ask)
        except (TypeError, KeyError, IndexError, AttributeError, RecursionError, JSONDecodeError) as error:
            raise UserError(f"the hub's answer about {what} has no known form; {_TRY_LATER}") from error

    def _load(self, split: str) -> Any:
        """The rows of a split, read by the datasets library in any format that it knows."""
        from datasets import load_dataset

        self._check_split(split)
        if self.path:
            files = self._required_files(split)
            return load_dataset(
                "parquet", data_files={split: files}, split=split, streaming=not self.download
            )
        return load_dataset(
            self.name,
            self.configuration,
            revision=self._commit,
            split=self.split_names[split],
            streaming=not self.download,
        )

    def _check_split(self, split: str) -> None:
        if split not in self.split_names:
            raise UserError(f"this data has splits {', '.join(self.split_names)}, not {split!r}")

    def _required_files(self, split: str) -> list[str]:
        files = self._parquet_files(split)
        if not files:
            raise self._no_files([split])
        return files

    def _parquet_files(self, split: str) -> list[str]:
        """The local files of a split, sorted: <split>.parquet, or numbered as <split>-00000-of-00003.parquet.

        Raises:
            UserError: there is one of several shards, but not all.
        """
        shard = re.compile(rf"{re.escape(self.split_names[split])}{_SHARD}\.parquet")
        numbers: dict[tuple[Path, int], set[int]] = defaultdict(set)
        files = []
        for file in self._local_files:
            if match := shard.fullmatch(file.name):
                files.append(str(file))
                if match["count"]:
                    numbers[file.parent, int(match["count"])].add(int(match["number"]))
        for (folder, count), found in numbers.items():
            if len(found) < count:
                missing = next(number for number in range(count) if number not in found)
                raise UserError(
                    f"{folder} holds {len(found)} of the {count} parquet files of the split {split} in "
                    f"data.path, without number {missing}; get the rest, or to use only a part, rename it to "
                    f"{self.split_names[split]}-0.parquet and so on"
                )
        return sorted(files)

    @cached_property
    def _local_files(self) -> list[Path]:
        path = os.path.abspath(os.path.expanduser(str(self.path)))
        if os.path.isdir(path):
            return [file for folder in (".", "data") for file in list_folder(Path(path, folder), ".parquet")]
        return [file for file in glob_files(path) if file.name.endswith(".parquet")]

    def _no_files(self, splits: Iterable[str]) -> UserError:
        path = os.path.expanduser(str(self.path))
        if not glob.has_magic(path) and not os.path.exists(path):
            return UserError(f"there is no file or folder {path!r} (data.path)")
        wanted = " or ".join(f"{self.split_names[split]}.parquet" for split in splits)
        names = sorted({re.sub(_SHARD + r"\.parquet$", "", file.name) for file in self._local_files})
        others = f"; it has {', '.join(names)}, which data.source.split_names can name" if names else ""
        return UserError(
            f"data.path {self.path!r} holds no parquet files called {wanted} (or in parts, such as "
            f"train-00000-of-00003.parquet){others}"
        )

    @cached_property
    def _commit(self) -> str:
        """The commit that the revision names today. Branches and tags can move, commits cannot."""
        if self.revision and re.fullmatch(r"[0-9a-f]{40}", self.revision):
            return self.revision
        with self._explaining():
            commit = self._dataset_info(self.revision).sha
        if not isinstance(commit, str) or not re.fullmatch(r"[0-9a-f]{40}", commit):
            raise UserError(
                f"the hub says that {self.name} is at commit {commit!r}, which is none; {_TRY_LATER}"
            )
        return commit

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            explanation = self._explanation(error)
            if explanation is None:
                raise
            raise UserError(explanation) from error

    def _explanation(self, error: Exception) -> str | None:
        """What the user can do about an error of the datasets library; None for an unknown error."""
        where = self.path or self.name
        # By name: the HTTP client, and with it the class of its errors, changes with the hub's releases.
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
