from __future__ import annotations

import http.server
import itertools
import shutil
import threading
from functools import partial
from typing import ClassVar

import pyarrow
import pyarrow.parquet
import pytest

from mambabyte.data import PG19Source, PG19TextsSource, prepare
from mambabyte.errors import UserError

BOOKS = {"train": 3, "validation": 1, "test": 2}


@pytest.fixture
def texts(tmp_path):
    """The layout of the authors' storage, with the lists of files."""
    folder = tmp_path / "texts"
    for split, count in BOOKS.items():
        (folder / split).mkdir(parents=True)
        names = [f"{split}/{number}.txt" for number in (9, 10, 100)[:count]]
        for name in names:
            (folder / name).write_bytes(f"the book {name}\r\n".encode() + b"\xff")
        (folder / f"{split}_files.txt").write_text("\n".join(reversed(names)) + "\n")
    return folder


@pytest.fixture
def server(texts, monkeypatch):
    """Serves the folder on loopback; first answers one request each with the statuses in `faults`."""
    faults, asked = [], []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            if faults:
                self.send_error(faults.pop(0))
            else:
                super().do_GET()

        def log_message(self, *arguments):
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(texts)))
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda seconds: None)
    httpd.url, httpd.faults, httpd.asked = f"http://127.0.0.1:{httpd.server_port}", faults, asked
    yield httpd
    httpd.shutdown()
    httpd.server_close()
    thread.join()


def contents(source, split="train"):
    return {document.name: document.data for document in source.documents(split)}


EXPECTED = {
    name: f"the book {name}\r\n".encode() + b"\xff"
    for name in ("train/9.txt", "train/10.txt", "train/100.txt")
}


def test_local_folder_of_texts(texts):
    source = PG19TextsSource(str(texts), books=BOOKS)
    assert list(contents(source)) == list(EXPECTED)
    assert contents(source) == EXPECTED
    before = source.identity()
    (texts / "train" / "9.txt").write_text("another text")
    assert PG19TextsSource(str(texts)).identity() != before


def test_texts_by_url_are_those_of_the_folder(texts, server):
    source = PG19TextsSource(server.url, lists=server.url + "/", books=BOOKS)
    assert contents(source) == EXPECTED
    assert list(contents(source)) == list(EXPECTED)
    assert source.identity()["texts"] == server.url


def test_faults_of_the_server_are_retried(server):
    server.faults += [500, 503, 429]
    assert contents(PG19TextsSource(server.url, lists=server.url)) == EXPECTED
    server.faults += [404]
    with pytest.raises(UserError, match=r"cannot fetch http.*Not Found"):
        contents(PG19TextsSource(server.url, lists=server.url))
    server.faults += [500] * 10
    with pytest.raises(UserError, match=r"goes on where it stopped"):
        contents(PG19TextsSource(server.url, lists=server.url))


def test_interrupted_download_fetches_only_the_rest(server, tmp_path):
    class Stopping(PG19TextsSource):
        stops: ClassVar[list[bool]] = [True, False]

        def documents_after(self, split, count):
            documents = super().documents_after(split, count)
            if not self.stops.pop(0):
                return documents
            return itertools.chain(list(documents)[:2], interruption())

    def interruption():
        raise KeyboardInterrupt
        yield

    source = Stopping(server.url, lists=server.url, books=BOOKS)
    with pytest.raises(KeyboardInterrupt):
        prepare(source, "train", tmp_path / "prepared")
    server.asked.clear()
    corpus = prepare(source, "train", tmp_path / "prepared")
    assert server.asked == ["/train/100.txt"]
    assert corpus.bytes.tobytes() == b"".join(EXPECTED.values())


@pytest.mark.parametrize("kind", ["texts", "hub"])
def test_books_are_counted_when_the_whole_split_is_read(kind, texts, tmp_path, monkeypatch):
    if kind == "texts":
        source = PG19TextsSource(str(texts), books={**BOOKS, "train": 4})
    else:
        rows = pyarrow.table({"text": ["one", "two", "three"]})
        pyarrow.parquet.write_table(rows, tmp_path / "train-0.parquet")
        source = PG19Source(name="owner/pg19", revision="0" * 40, books={"train": 4})
        source.path = str(tmp_path)  # a folder instead of the hub
    with pytest.raises(UserError, match=r"holds 3 books and PG19 has 4; .*data.books=null"):
        prepare(source, "train", tmp_path / "prepared")
    with pytest.raises(UserError, match=r"holds 3 books"):  # the second attempt resumes after all three
        prepare(source, "train", tmp_path / "prepared")
    assert prepare(source, "train", tmp_path / "prepared", max_bytes=2).num_bytes == 2
    source.books = {"train": 3}
    assert prepare(source, "train", tmp_path / "prepared").num_documents == 3


def test_missing_texts(texts):
    shutil.rmtree(texts / "test")
    with pytest.raises(UserError, match=r"holds no test/\*.txt"):
        contents(PG19TextsSource(str(texts)), "test")
    assert len(PG19TextsSource(str(texts)).identity()["files"]) == 4


@pytest.mark.parametrize(
    "settings",
    [
        {"texts": None},
        {"texts": "http://127.0.0.1:1"},
        {"texts": "a", "lists": [3]},
        {"texts": "a", "books": {"trian": 1}},
    ],
)
def test_ill_typed_settings(settings):
    with pytest.raises(UserError, match=r"data\.(texts|lists|books)"):
        PG19TextsSource(**settings)
