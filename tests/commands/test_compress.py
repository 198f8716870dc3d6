"""`mambabyte compress` and `mambabyte decompress`."""

import subprocess
import sys
from pathlib import Path

import pytest

from mambabyte.commands import compress, decompress, find
from mambabyte.errors import UserError

TEXT = b"the quick brown fox jumps over \xff the lazy dog, " * 10


def test_there_and_back_from_the_command_line(finished: Path, tmp_path: Path) -> None:
    text = tmp_path / "one's own.txt"
    text.write_bytes(TEXT)
    small = tmp_path / "one's own.txt.mbc"
    command = [sys.executable, "-m", "mambabyte"]
    options = {"capture_output": True, "text": True, "timeout": 120}
    done = subprocess.run([*command, "compress", str(text), "--ckpt", str(finished)], **options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{small}: {len(TEXT):,} bytes in {small.stat().st_size:,} (")
    text.unlink()
    done = subprocess.run([*command, "decompress", str(small), f"ckpt={finished}"], **options)
    assert done.returncode == 0, done.stderr
    assert text.read_bytes() == TEXT


def test_the_places_can_be_chosen(configure, finished: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "text").write_bytes(TEXT)
    files = [f"file={tmp_path}/text", f"out={tmp_path}/small"]
    compress.run(configure("compress", f"ckpt={finished}", *files, "lanes=2", "threads=2"))
    with pytest.raises(UserError, match="out="):
        decompress.run(configure("decompress", f"ckpt={finished}", f"file={tmp_path}/small"))
    files = [f"file={tmp_path}/small", f"out={tmp_path}/back"]
    decompress.run(configure("decompress", f"ckpt={finished}", *files))
    assert (tmp_path / "back").read_bytes() == TEXT
    assert capsys.readouterr().out.endswith(f"{tmp_path}/back: {len(TEXT):,} bytes\n")


@pytest.mark.parametrize("file", ["-", "/dev/null", "."])
def test_what_is_no_regular_file_is_said(file: str, configure, finished: Path, tmp_path: Path) -> None:
    settings = configure("compress", f"ckpt={finished}", f"file={file}", f"out={tmp_path}/out.mbc")
    with pytest.raises(UserError, match="is not a regular file; write what is to be read to one first"):
        find("compress").run(settings)


@pytest.mark.parametrize("command", ["compress", "decompress"])
@pytest.mark.parametrize("override", ["ckpt=nowhere", "file=nowhere.mbc", "device=cuda:99"])
def test_wrong_settings_are_reported_in_a_sentence(
    command: str, override: str, configure, finished: Path, tmp_path: Path
) -> None:
    (tmp_path / "file.mbc").write_bytes(b"abc")
    with pytest.raises(UserError):
        find(command).run(configure(command, f"ckpt={finished}", f"file={tmp_path}/file.mbc", override))
    assert [path.name for path in tmp_path.iterdir()] == ["file.mbc"]
