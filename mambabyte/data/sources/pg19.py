"""PG19 (Rae et al. 2020, arXiv 1911.05507), from the hub's parquet files or the original text files."""

from __future__ import annotations

import http.client
import re
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from mambabyte.config.settings import Settings
from mambabyte.data.sources.documents import SPLITS, Document
from mambabyte.data.sources.finding import list_folder
from mambabyte.data.sources.huggingface import HuggingFaceSource
from mambabyte.data.sources.opening import (
    FileDocument,
    content_hashes,
    explaining_read_errors,
    refuse_unreadable,
)
from mambabyte.data.sources.retries import retrying
from mambabyte.errors import UserError

# Bytes of text in each split (README of jxiw/MambaByte).
_BYTES = {"train": 11_677_824_216, "validation": 17_733_002, "test": 41_289_101}
_RETRIES = 5


@dataclass
class PG19Source(HuggingFaceSource):
    """One document per book, from the hub's parquet files or a local folder of them.

    Attributes:
        books: how many books each split on the hub must hold when all of it is read; None: any number.
    """

    books: dict[str, int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.books = {} if self.path else _checked(self.books)

    def documents_after(self, split: str, count: int) -> Iterator[Document]:
        return _counted(super().documents_after(split, count), self.books, split, count)

    def expected_bytes(self, split: str) -> int | None:
        return _BYTES.get(split) if self.books else super().expected_bytes(split)


@dataclass
class PG19TextsSource(Settings):
    """One document per book, from the original files <split>/<number>.txt. Downloads are not kept.

    Attributes:
        texts: a folder or a URL.
        lists: if texts is a URL, that of <split>_files.txt, which list the files, one path per line.
        books: as for PG19Source, but also for a folder.
    """

    section: ClassVar[str] = "data"
    texts: str
    lists: str | None = None
    books: dict[str, int] | None = None

    def __post_init__(self) -> None:
        if self.remote and not self.lists:
            raise UserError("data.texts is a URL and needs data.lists=<URL of the <split>_files.txt>")
        self.texts, self.lists = self.texts.rstrip("/"), (self.lists or "").rstrip("/")
        self.books = _checked(self.books)
        self._listed: dict[str, list[str]] = {}

    @property
    def remote(self) -> bool:
        return re.match(r"https?://", self.texts) is not None

    @property
    def splits(self) -> tuple[str, ...]:
        return SPLITS

    def documents(self, split: str) -> Iterator[Document]:
        return self.documents_after(split, 0)

    def documents_after(self, split: str, count: int) -> Iterator[Document]:
        return _counted(self._after(split, count), self.books, split, count)

    def _after(self, split: str, count: int) -> Iterator[Document]:
        for name in self._names(split)[count:]:
            if self.remote:
                yield Document(name, _fetch(f"{self.texts}/{name}"))
            else:
                with explaining_read_errors(self._folder / name):
                    refuse_unreadable(self._folder / name)
                yield FileDocument(name, self._folder / name)

    def expected_bytes(self, split: str) -> int | None:
        return _BYTES.get(split) if self.books else None

    def identity(self) -> dict[str, Any]:
        if self.remote:
            return {"source": "PG19TextsSource", "texts": self.texts, "lists": self.lists}
        names = [name for split in SPLITS if (self._folder / split).is_dir() for name in self._names(split)]
        hashes = content_hashes([self._folder / name for name in names])
        return {"source": "PG19TextsSource", "files": list(map(list, zip(names, hashes, strict=True)))}

    @property
    def _folder(self) -> Path:
        return Path(self.texts).expanduser().absolute()

    def _names(self, split: str) -> list[str]:
        """The split's files as paths relative to texts, sorted by the numbers of the books."""
        if split not in SPLITS:
            raise UserError(f"PG19 has splits {', '.join(SPLITS)}, not {split!r}")
        if split not in self._listed:
            if self.remote:
                listing = _fetch(f"{self.lists}/{split}_files.txt", first_contact=True)
                lines = listing.decode("utf-8", "surrogateescape").splitlines()
                names = [line.strip() for line in lines if line.strip()]
            else:
                names = [f"{split}/{path.name}" for path in list_folder(self._folder / split, ".txt")]
            if not names:
                raise UserError(f"data.texts={self.texts} holds no {split}/*.txt; name the folder above them")
            self._listed[split] = sorted(names, key=_number)
        return self._listed[split]


def _number(name: str) -> tuple[int, str]:
    digits = re.search(r"(\d+)\.txt$", name)
    return (int(digits[1]) if digits else -1, name)


def _checked(books: dict[str, int] | None) -> dict[str, int]:
    books = books or {}
    if not set(books) <= set(SPLITS):
        raise UserError(f"data.books must give a number for each of {', '.join(SPLITS)}, not {books!r}")
    return books


def _counted(
    documents: Iterable[Document], books: dict[str, int] | None, split: str, count: int
) -> Iterator[Document]:
    """The documents that come after ``count`` others; complains at the end if there are not enough."""
    expected = (books or {}).get(split)
    for document in documents:
        count += 1
        yield document
    if expected is not None and count != expected:
        raise UserError(
            f"the {split} split holds {count:,} books and PG19 has {expected:,}; get the rest of it, or set "
            "data.books=null to use a part"
        )


def _fetch(url: str, first_contact: bool = False) -> bytes:
    def get() -> bytes:
        with urllib.request.urlopen(url, timeout=60) as response:
            return response.read()

    advice = (
        "repeat the command later, which goes on where it stopped, or give data.texts=<a folder that holds "
        "train, validation and test>"
    )
    try:
        return retrying(url, _RETRIES, advice, first_contact)(get)
    except (OSError, http.client.HTTPException) as error:
        raise UserError(f"cannot fetch {url}: {getattr(error, 'reason', None) or error}; {advice}") from error
