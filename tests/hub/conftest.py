"""A hub on loopback with books in PG19's layout."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pyarrow
import pyarrow.parquet
import pytest

from tests.hub.server import Hub

CARD = b"---\nlicense: apache-2.0\n---\n# Books\n"
SENTENCE = "Book {0}, page {1}: {2} happy families are all alike. "


def shard(numbers: range) -> bytes:
    """A parquet file of the books of these numbers, in two row groups."""
    books = ["".join(SENTENCE.format(n, page, n * page * 7919) for page in range(4 + n % 5)) for n in numbers]
    table = pyarrow.table(
        {
            "short_book_title": [f"Book {n}" for n in numbers],
            "publication_date": [1800 + n for n in numbers],
            "url": [f"http://www.gutenberg.org/ebooks/{n}" for n in numbers],
            "text": books,
        }
    )
    file = io.BytesIO()
    pyarrow.parquet.write_table(table, file, row_group_size=len(numbers) // 2)
    return file.getvalue()


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = books_hub()
    hub.start()
    yield hub
    hub.stop()


def books_hub() -> Hub:
    hub = Hub()
    hub.files["README.md"] = CARD
    for split, sizes in {"train": [8, 8, 8], "validation": [2], "test": [2]}.items():
        for number, size in enumerate(sizes):
            name = f"data/{split}-{number:05}-of-{len(sizes):05}.parquet"
            hub.files[name] = shard(
                range(100 * len(split) + 10 * number, 100 * len(split) + 10 * number + size)
            )
    return hub
