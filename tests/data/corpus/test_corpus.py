from __future__ import annotations

import hashlib
import os
import pickle
import resource
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import mambabyte
from mambabyte.data.corpus.corpus import ByteCorpus, MappedCorpus, prepare
from mambabyte.data.sources.documents import Document
from mambabyte.errors import UserError

CONTENTS = [b"first", b"", bytes(range(256)), b"\xff\xfe not UTF-8 \x80"]


def test_round_trip(memory_source, tmp_path):
    corpus = prepare(memory_source(CONTENTS), "train", tmp_path)
    assert [corpus.document(index).tobytes() for index in range(corpus.num_documents)] == [
        data for data in CONTENTS if data
    ]
    assert list(corpus.names) == ["document-0", "document-2", "document-3"]
    assert (corpus.num_bytes, corpus.num_documents) == (sum(map(len, CONTENTS)), 3)
    assert corpus.bytes.dtype == np.uint8
    assert corpus.offsets.dtype == np.int64


def test_fingerprint_is_sha256_of_bytes_and_offsets(memory_source, tmp_path):
    corpus = prepare(memory_source(CONTENTS), "train", tmp_path)
    text = b"".join(CONTENTS)
    expected = hashlib.sha256(text + np.array([0, 5, 261, len(text)], dtype="<i8").tobytes()).hexdigest()
    assert corpus.fingerprint == expected
    in_memory = ByteCorpus(np.array(corpus.bytes), np.array(corpus.offsets), corpus.names)
    assert in_memory.fingerprint == expected


def test_prepared_once_then_opened(memory_source, tmp_path):
    source = memory_source(CONTENTS)
    prepare(source, "train", tmp_path)
    prepare(source, "train", tmp_path)
    assert source.reads == 1
    prepare(source, "validation", tmp_path)
    prepare(memory_source(CONTENTS[:1]), "train", tmp_path)
    assert len([entry for entry in tmp_path.iterdir() if entry.is_dir()]) == 3


def test_max_bytes_cuts_the_last_document(memory_source, tmp_path):
    corpus = prepare(memory_source(CONTENTS), "train", tmp_path, max_bytes=7)
    assert corpus.bytes.tobytes() == b"first\x00\x01"
    assert corpus.num_documents == 2
    assert list(prepare(memory_source(CONTENTS), "train", tmp_path, max_bytes=5).names) == ["document-0"]
    assert prepare(memory_source(CONTENTS), "train", tmp_path, max_bytes=10**6).num_documents == 3


def test_mapping_is_pickled_by_path(memory_source, tmp_path):
    corpus = prepare(memory_source([bytes(10**6)]), "train", tmp_path)
    pickled = pickle.dumps(corpus)
    assert len(pickled) < 1000
    assert pickle.loads(pickled).fingerprint == corpus.fingerprint


def test_empty_split_is_refused_and_leaves_nothing(memory_source, tmp_path):
    with pytest.raises(UserError, match=r"train split .* no bytes"):
        prepare(memory_source([b"", b""]), "train", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


class Stops(Exception):
    pass


@pytest.fixture
def stopping_source(memory_source):
    class StoppingSource(memory_source):
        """Raises once at each document in `stops`; records which documents it has yielded."""

        def __init__(self, contents, stops=()):
            super().__init__(contents)
            self.stops, self.given = set(stops), []

        def documents(self, split):
            yield from self.documents_after(split, 0)

        def documents_after(self, split, count):
            for number, data in enumerate(self.contents[count:], start=count):
                if number in self.stops:
                    self.stops.remove(number)
                    raise Stops
                self.given.append(number)
                yield Document(f"document-{number}", data)

    return StoppingSource


def contents_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("max_bytes", [None, 3000])
def test_interrupted_preparation_resumes_and_ends_with_the_same_bytes(max_bytes, stopping_source, tmp_path):
    contents = [bytes([number]) * (37 * number % 501) for number in range(30)]  # number 0 is empty
    whole = prepare(stopping_source(contents), "train", tmp_path / "whole", max_bytes)
    source = stopping_source(contents, stops=[1, 2, 11])
    for _ in range(3):
        with pytest.raises(Stops):
            prepare(source, "train", tmp_path / "parts", max_bytes)
        assert not [path for path in (tmp_path / "parts").iterdir() if path.name[0] != "."]
    corpus = prepare(source, "train", tmp_path / "parts", max_bytes)
    assert contents_of(corpus.folder) == contents_of(whole.folder)
    # Nothing is kept for an empty document alone, so number 0 is read twice.
    assert source.given[:2] == [0, 0]
    assert source.given[2:] == list(range(1, source.given[-1] + 1))
    assert [path.name for path in (tmp_path / "parts").iterdir() if path.name[0] == "."] == [".lock"]


def test_preparation_resumes_with_a_source_that_cannot_skip(memory_source, tmp_path):
    class Interrupted(memory_source):
        broken = True

        def documents(self, split):
            yield Document("one", b"one")
            if self.broken:
                raise KeyboardInterrupt
            yield Document("two", b"two")

    source = Interrupted([])
    with pytest.raises(KeyboardInterrupt):
        prepare(source, "train", tmp_path)
    source.broken = False
    corpus = prepare(source, "train", tmp_path)
    assert (corpus.bytes.tobytes(), list(corpus.names)) == (b"onetwo", ["one", "two"])


@pytest.mark.parametrize("damage", ["flipped", "short", "long", "no file", "no journal", "odd journal"])
def test_partial_files_are_resumed_only_if_they_match_the_journal(damage, stopping_source, tmp_path):
    contents = [b"some text", b"more text", b"the rest"]
    source = stopping_source(contents, stops=[2])
    with pytest.raises(Stops):
        prepare(source, "train", tmp_path)
    (partial,) = tmp_path.glob(".*.part")
    data = partial / "bytes.bin"
    text = data.read_bytes()
    if damage == "flipped":
        data.write_bytes(text.replace(b"e", b"E"))
    elif damage == "short":
        data.write_bytes(text[:-1])
    elif damage == "long":  # written after the last entry of the journal, by a process that was killed
        data.write_bytes(text + b"half a docum")
    elif damage == "no file":
        (partial / "offsets.bin").unlink()
    elif damage == "no journal":
        (partial / "journal.json").unlink()
    else:
        (partial / "journal.json").write_text('{"taken": 2')
    corpus = prepare(source, "train", tmp_path)
    assert corpus.bytes.tobytes() == b"".join(contents)
    assert list(corpus.names) == ["document-0", "document-1", "document-2"]
    assert source.given == ([0, 1, 2] if damage == "long" else [0, 1, 0, 1, 2])


def test_killed_preparation_resumes(tmp_path):
    code = f"""
import os, signal, mambabyte.data.corpus.writer as writing
from mambabyte.data import Document, prepare
writing.JOURNAL_SECONDS = 0

class Source:
    def identity(self): return {{"source": "test"}}
    def documents(self, split): return self.documents_after(split, 0)
    def documents_after(self, split, count):
        print("from", count, flush=True)
        for number in range(count, 40):
            if number == count + 15:
                os.kill(os.getpid(), signal.SIGKILL)
            yield Document(str(number), bytes([number]) * 1000)

prepare(Source(), "train", {str(tmp_path)!r})
print("whole")
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(mambabyte.__file__).parents[1])}
    lines = []
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
        lines += done.stdout.split("\n")[:-1]
    assert lines == ["from 0", "from 15", "from 30", "whole"], done.stderr
    (folder,) = (path for path in tmp_path.iterdir() if path.name[0] != ".")
    corpus = MappedCorpus(folder)
    assert corpus.bytes.tobytes() == b"".join(bytes([number]) * 1000 for number in range(40))
    assert hashlib.sha256(corpus.bytes.tobytes()).hexdigest() == corpus.meta["sha256"]["bytes.bin"]


def test_document_that_fails_in_the_middle_is_not_kept(memory_source, tmp_path):
    class Breaks(Document):
        broken = True

        def chunks(self):
            yield b"half of "
            if Breaks.broken:
                raise UserError("cannot read it")
            yield b"it"

    class Source(memory_source):
        def documents(self, split):
            yield Document("one", b"one")
            yield Breaks("two", b"")

    with pytest.raises(UserError, match="cannot read it"):
        prepare(Source([]), "train", tmp_path)
    Breaks.broken = False
    assert prepare(Source([]), "train", tmp_path).bytes.tobytes() == b"onehalf of it"


def test_full_disk_is_one_sentence_and_the_next_try_works(memory_source, tmp_path):
    # A limit on file size makes write() fail where a full disk would.
    source = memory_source([bytes([number]) * 1_500_000 for number in range(4)])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_000_000, hard))
    try:
        for _ in range(2):
            with pytest.raises(UserError, match=r"cannot write prepared data .* data.folder"):
                prepare(source, "train", tmp_path)
            assert all(path.name.startswith(".") for path in tmp_path.iterdir())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert prepare(source, "train", tmp_path).bytes.tobytes() == b"".join(source.contents)


@pytest.mark.parametrize("place", ["fsync", "replace"])
def test_failure_while_finishing_leaves_no_corpus(place, memory_source, tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError(28, "No space left on device")

    source = memory_source(CONTENTS)
    monkeypatch.setattr(os, place, fail)
    with pytest.raises(UserError, match="No space left"):
        prepare(source, "train", tmp_path)
    assert all(path.name.startswith(".") for path in tmp_path.iterdir())
    monkeypatch.undo()
    assert prepare(source, "train", tmp_path).num_documents == 3


def test_names_are_decoded_on_access(memory_source, tmp_path):
    names = prepare(memory_source(CONTENTS), "train", tmp_path).names
    assert (len(names), names[0], names[-1], names[1:]) == (
        3,
        "document-0",
        "document-3",
        ["document-2", "document-3"],
    )
    assert names.index("document-2") == 1
    for index in (3, -4):
        with pytest.raises(IndexError):
            names[index]


def test_folder_that_cannot_be_created_is_one_sentence(memory_source, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"choose another data.folder="):
        prepare(memory_source(CONTENTS), "train", tmp_path / "file" / "prepared")


@pytest.mark.parametrize(
    "damaged", ["bytes.bin", "offsets.bin", "names.bin", "name_offsets.bin", "meta.json"]
)
def test_damaged_folder_is_named(damaged, memory_source, tmp_path):
    source = memory_source(CONTENTS)
    folder = prepare(source, "train", tmp_path).folder
    content = (folder / damaged).read_bytes()
    (folder / damaged).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="delete that folder"):
        prepare(source, "train", tmp_path)
    os.remove(folder / damaged)
    with pytest.raises(UserError, match="delete that folder"):
        prepare(source, "train", tmp_path)


def test_only_one_of_many_at_once_does_the_work(memory_source, tmp_path):
    # flock excludes threads like processes, since each opens the lock file itself.
    together = threading.Barrier(4, timeout=20)

    class Slow(memory_source):
        def identity(self):
            together.wait()
            return super().identity()

    source = Slow([b"some", b"text"])
    with ThreadPoolExecutor(4) as pool:
        corpora = list(pool.map(lambda _: prepare(source, "train", tmp_path), range(4)))
    assert source.reads == 1
    assert {corpus.bytes.tobytes() for corpus in corpora} == {b"sometext"}
