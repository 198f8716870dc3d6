"""Each error of the system gets its own advice, wherever a file is written."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import SafetensorError

import mambabyte
from mambabyte import checkpoints
from mambabyte.coding import compress_file
from mambabyte.commands import export, report
from mambabyte.errors import UserError
from mambabyte.models import MambaByteConfig
from mambabyte.runs.run_directory import lock_run_directory
from mambabyte.runtime.system_errors import cannot_write, remedy


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "free some space, or choose another out="),
        (errno.EDQUOT, "free some space, or choose another out="),
        (errno.EFBIG, "free some space, or choose another out="),
        (errno.EROFS, "choose another out="),
        (errno.EACCES, "change its permissions, or choose another out="),
        (errno.EPERM, "change its permissions, or choose another out="),
        (errno.ENAMETOOLONG, "choose a shorter out="),
        (errno.ENOTDIR, "a file stands where a folder should be: choose another out="),
        (errno.EEXIST, "a file stands where a folder should be: choose another out="),
        (errno.EISDIR, "a folder stands where a file should be: choose another out="),
        (errno.ENOENT, "make its folder first, or choose another out="),
        (errno.EIO, "check the disk, or the connection to it"),
        (errno.EINVAL, "choose another out="),
    ],
    ids=errno.errorcode.get,
)
def test_every_number_has_its_advice(number: int, advice: str) -> None:
    said = cannot_write(Path("a"), OSError(number, os.strerror(number)), "out=")
    assert str(said) == f"cannot write 'a' ({os.strerror(number)}): {advice}"


def test_the_system_is_heard_through_safetensors() -> None:
    error = SafetensorError("I/O error: No space left on device (os error 28)")
    assert remedy(error) == "free some space, or choose another folder"
    assert remedy(SafetensorError("no number")) is None


def export_with_the_command(place: Path, finished: Path, configure: Callable) -> None:
    export.run(configure("export", f"ckpt={finished}", f"out={place}"))


def save_from_python(place: Path, finished: Path, configure: Callable) -> None:
    mambabyte.save(MambaByteConfig(d_model=16, n_layer=1).build(), place)


def write_a_checkpoint(place: Path, finished: Path, configure: Callable) -> None:
    checkpoints.write({}, place)


def compress(place: Path, finished: Path, configure: Callable) -> None:
    source = finished / "config.yaml"
    compress_file(MambaByteConfig(d_model=16, n_layer=1).build(), source, place)


def begin_a_run(place: Path, finished: Path, configure: Callable) -> None:
    with lock_run_directory(place, {}):
        raise AssertionError


def write_a_report(place: Path, finished: Path, configure: Callable) -> None:
    report.run(report.ReportSettings([str(finished)], out=str(place)))


@pytest.mark.parametrize(
    ("name", "advice"),
    [("file/x", "a file stands where"), ("n" * 300, "choose a shorter"), ("loop/x", "a (link|file) ")],
)
@pytest.mark.parametrize(
    "write",
    [
        export_with_the_command,
        save_from_python,
        write_a_checkpoint,
        compress,
        begin_a_run,
        write_a_report,
    ],
)
def test_a_place_that_is_none_is_said_and_no_space_is_asked_for(
    write: Callable, name: str, advice: str, finished: Path, configure: Callable, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UserError, match=f"cannot write .*: {advice}") as caught:
        write(tmp_path / name, finished, configure)
    assert "space" not in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == ["file", "loop"]


def test_python_is_not_told_of_the_command_lines_settings(tmp_path: Path) -> None:
    (tmp_path / "there").touch()
    for place in (tmp_path / "there", tmp_path / "there" / "x"):
        with pytest.raises(UserError, match=r"choose another folder$"):
            save_from_python(place, tmp_path, lambda *_: None)
