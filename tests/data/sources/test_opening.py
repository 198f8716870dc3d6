"""What a file's name promises is what is read, or a sentence."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import tarfile
import zipfile

import pytest
import zstandard

from mambabyte.data import FilesSource
from mambabyte.data.sources import opening
from mambabyte.data.sources.opening import content_hashes
from mambabyte.errors import UserError

TEXT = b"".join(b"line %d of a text\n" % number for number in range(5000))
COMPRESS = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.compress,
}


def read(path, split="train", fraction=0.0):
    return [document.data for document in FilesSource(str(path), fraction).documents(split)]


@pytest.mark.parametrize("suffix", COMPRESS)
def test_compressed_files_are_read_in_all_their_frames(suffix, tmp_path):
    compress = COMPRESS[suffix]
    (tmp_path / f"a.txt{suffix}").write_bytes(compress(TEXT) + compress(b"") + compress(b"the end"))
    lines = [json.dumps({"text": text}).encode() + b"\n" for text in ("one", "two")]
    (tmp_path / f"b.jsonl{suffix.upper()}").write_bytes(b"".join(map(compress, lines)))
    assert read(tmp_path) == [TEXT + b"the end", b"one", b"two"]
    assert FilesSource(str(tmp_path)).expected_bytes("train") is None


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_compressed_file_that_is_cut_off_is_refused(suffix, name, tmp_path):
    compress, path = COMPRESS[suffix], tmp_path / (name + suffix)
    line = json.dumps({"text": TEXT.decode()}).encode() + b"\n"
    frame = compress(line)
    for whole_frames in (b"", frame, frame * 2):
        for end in (len(frame) // 2, len(frame) - 1):
            path.write_bytes(whole_frames + frame[:end])
            with pytest.raises(UserError, match=f"cannot read .*{name}{suffix}: "):
                read(path)


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_single_compressed_file_gives_its_tail(suffix, tmp_path):
    path = tmp_path / f"book.txt{suffix}"
    path.write_bytes(COMPRESS[suffix](TEXT))
    border = len(TEXT) - round(0.1 * len(TEXT))
    assert read(path, fraction=0.1) == [TEXT[:border]]
    assert read(path, "validation", 0.1) == [TEXT[border:]]


def zip_archive():
    with zipfile.ZipFile(stream := io.BytesIO(), "w") as archive:
        archive.writestr("a.txt", TEXT)
    return stream.getvalue()


def tar_archive():
    with tarfile.open(fileobj=(stream := io.BytesIO()), mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.txt"), io.BytesIO())
    return stream.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        *((f"a{suffix[1:]}", compress(TEXT), f"end in {suffix}") for suffix, compress in COMPRESS.items()),
        ("a.zip", zip_archive(), "a zip archive"),
        ("notes.jsonl", gzip.compress(TEXT), "gzip-compressed"),
        ("a.tar", tar_archive(), "a tar archive"),
        ("a.tar.gz", gzip.compress(tar_archive()), "a tar archive"),
        ("a.txt.gz", gzip.compress(gzip.compress(TEXT)), "gzip-compressed"),
        ("a.7z", b"7z\xbc\xaf\x27\x1c\0\4", "a 7z archive"),
        ("a.lz4", b"\x04\x22\x4d\x18d", "lz4-compressed"),
        ("book.txt", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "a git-lfs pointer"),
        ("a.txt.gz", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "a git-lfs pointer"),
    ],
    ids=lambda value: value if isinstance(value, str) else "content",
)
def test_what_is_no_text_of_its_own_is_refused(name, content, what, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name} is .*{what}"):
        read(tmp_path)


def test_other_bytes_are_read_as_they_are(tmp_path):
    contents = {
        "a.png": b"\x89PNG\r\n\x1a\n",
        "b.txt": b"PK is a name",
        "c.txt": b"LZIP",
        "d.bin": b"\x1f\x8b",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    assert read(tmp_path) == list(contents.values())


def test_hashes_are_kept_for_files_that_have_not_changed(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_bytes(b"one")
    first = content_hashes([path])
    path.write_bytes(b"two")  # as long, and perhaps in the same tick of the clock
    assert content_hashes([path]) != first
    later = path.stat().st_ctime + 100
    monkeypatch.setattr(opening.time, "time", lambda: later)
    second = content_hashes([path])
    monkeypatch.setattr(opening.hashlib, "sha256", None)  # not needed any more
    assert content_hashes([path]) == second


def test_corpora_of_the_same_names_sizes_and_times_are_different(tmp_path):
    def identity(folder, content):
        (tmp_path / folder).mkdir(exist_ok=True)
        path = tmp_path / folder / "a.txt"
        path.write_bytes(content)
        os.utime(path, ns=(10**18, 10**18))
        return FilesSource(str(tmp_path / folder)).identity()

    assert identity("one", b"some text") != identity("two", b"more text")
    assert identity("one", b"some text") == identity("two", b"some text")
