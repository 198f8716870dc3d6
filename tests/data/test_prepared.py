from __future__ import annotations

import hashlib
import os
import pickle
import resource
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from mambabyte.data.documents import Document
from mambabyte.data.prepared import ByteCorpus, prepare
from mambabyte.errors import UserError

CONTENTS = [b"first", b"", bytes(range(256)), b"\xff\xfe not UTF-8 \x80"]


def test_round_trip(memory_source, tmp_path):
    corpus = prepare(memory_source(CONTENTS), "train", tmp_path)
    assert [corpus.document(index).tobytes() for index in range(corpus.num_documents)] == [
        data for data in CONTENTS if data
    ]
    assert corpus.names == ["document-0", "document-2", "document-3"]
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
    assert prepare(memory_source(CONTENTS), "train", tmp_path, max_bytes=5).names == ["document-0"]
    assert prepare(memory_source(CONTENTS), "train", tmp_path, max_bytes=10**6).num_documents == 3


def test_mapping_is_pickled_by_place(memory_source, tmp_path):
    corpus = prepare(memory_source([bytes(10**6)]), "train", tmp_path)
    pickled = pickle.dumps(corpus)
    assert len(pickled) < 1000
    assert pickle.loads(pickled).fingerprint == corpus.fingerprint


def test_empty_split_is_refused_and_leaves_nothing(memory_source, tmp_path):
    with pytest.raises(UserError, match=r"train split .* no bytes"):
        prepare(memory_source([b"", b""]), "train", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_interruption_leaves_nothing_and_the_next_try_works(memory_source, tmp_path):
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
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    source.broken = False
    assert prepare(source, "train", tmp_path).bytes.tobytes() == b"onetwo"


def test_leftovers_of_a_killed_process_are_replaced(memory_source, tmp_path):
    source = memory_source([b"whole"])
    key = next(
        path.name
        for path in prepare(source, "train", tmp_path / "a").folder.parent.iterdir()
        if path.is_dir()
    )
    partial = tmp_path / "b" / f".{key}.part"
    partial.mkdir(parents=True)
    (partial / "bytes.bin").write_bytes(b"half")
    assert prepare(source, "train", tmp_path / "b").bytes.tobytes() == b"whole"
    assert not partial.exists()


def test_full_disk_is_one_sentence_and_leaves_nothing(memory_source, tmp_path):
    # A limit on file size stands in for a full disk: write() fails in the same places.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(UserError, match=r"cannot write prepared data .* data.folder"):
            prepare(memory_source([bytes(50_000)] * 4), "train", tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_folder_that_cannot_be_made_is_one_sentence(memory_source, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"set data.folder to another place"):
        prepare(memory_source(CONTENTS), "train", tmp_path / "file" / "prepared")


@pytest.mark.parametrize("damaged", ["bytes.bin", "offsets.npy", "meta.json"])
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
    # flock excludes threads as it excludes processes, since each opens the lock file for itself.
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
