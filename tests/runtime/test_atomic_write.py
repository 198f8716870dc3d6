"""Files that are written whole or not at all, by several processes at once and by ones that are killed."""

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from mambabyte.runtime.atomic_write import atomic_folder, atomic_write


@pytest.fixture
def leftover(tmp_path: Path) -> Iterator[Path]:
    """The temporary file of a process that was killed while it wrote `tmp_path/target`."""
    child = os.fork()
    if child == 0:
        with atomic_write(tmp_path / "target") as file:
            file.write(b"half")
            file.flush()
            os._exit(0)
    os.waitpid(child, 0)
    (left,) = tmp_path.iterdir()
    return left


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_two_writers_of_one_file_do_not_disturb_each_other(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "target") as first, atomic_write(tmp_path / "target") as second:
        first.write(b"first")
        second.write(b"second, and longer")
    assert (tmp_path / "target").read_bytes() == b"first"  # the last to end
    assert names(tmp_path) == ["target"]


def test_a_writer_that_must_not_replace_is_told_that_it_came_too_late(tmp_path: Path) -> None:
    late = atomic_write(tmp_path / "target", replace=False)
    late.__enter__().write(b"late")
    with atomic_write(tmp_path / "target", replace=False) as early:
        early.write(b"early")
    with pytest.raises(FileExistsError):
        late.__exit__(None, None, None)
    assert (tmp_path / "target").read_bytes() == b"early"
    assert names(tmp_path) == ["target"]


def test_so_it_is_where_there_are_no_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*paths: Path) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", refuse)
    with atomic_write(tmp_path / "target", replace=False) as file:
        file.write(b"early")
    with pytest.raises(FileExistsError), atomic_write(tmp_path / "target", replace=False):
        pass
    assert (tmp_path / "target").read_bytes() == b"early"
    assert names(tmp_path) == ["target"]


def test_the_next_writer_removes_what_a_killed_one_left(leftover: Path, tmp_path: Path) -> None:
    assert leftover.read_bytes() == b"half"
    others = [f"{leftover.name}.txt", "target.old.temporary", f"my {leftover.name}"]
    for name in others:
        (tmp_path / name).touch()
    with atomic_write(tmp_path / "target"):
        pass
    assert names(tmp_path) == sorted([*others, "target"])


def test_a_failure_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"before")
    with suppress(ZeroDivisionError), atomic_write(tmp_path / "target") as file:
        file.write(b"after")
        raise ZeroDivisionError
    assert (tmp_path / "target").read_bytes() == b"before"
    assert names(tmp_path) == ["target"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_the_umask_decides_who_may_read(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        with atomic_write(tmp_path / "target"), atomic_folder(tmp_path / "folder"):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "target").stat().st_mode) == mode
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o777 & ~umask


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with suppress(ZeroDivisionError), atomic_folder(tmp_path / "a" / "folder") as folder:
        (folder / "file").touch()
        raise ZeroDivisionError
    assert names(tmp_path / "a") == []
    late = atomic_folder(tmp_path / "folder")
    (late.__enter__() / "late").touch()
    with atomic_folder(tmp_path / "folder") as early:
        (early / "early").touch()
    with pytest.raises(OSError, match="not empty"):
        late.__exit__(None, None, None)
    assert names(tmp_path / "folder") == ["early"]
    assert names(tmp_path) == ["a", "folder"]
