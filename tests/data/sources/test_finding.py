"""Nothing below a path is left out in silence, and what a document is called depends on nothing else."""

from __future__ import annotations

import os

import pytest

from mambabyte.data import FilesSource, PG19TextsSource, StandardLibrarySource
from mambabyte.data.sources import finding
from mambabyte.data.sources.documents import held_out
from mambabyte.data.sources.finding import find_files
from mambabyte.errors import UserError


@pytest.fixture(autouse=True)
def nothing_announced(monkeypatch):
    monkeypatch.setattr(finding, "_announced", set())


def fill(folder, names=range(100)):
    folder.mkdir(parents=True)
    for number in names:
        (folder / f"{number}.txt").write_text(f"{folder.name} {number}")


def validation(*paths):
    source = FilesSource(list(map(str, paths)), 0.2)
    return {document.data for document in source.documents("validation")}


@pytest.mark.parametrize("pattern", ["*/*.txt", "*", "**/*.txt"])
def test_a_folder_added_under_a_glob_moves_no_document(pattern, tmp_path):
    fill(tmp_path / "one")
    before = validation(tmp_path / pattern)
    fill(tmp_path / "two" / "three")
    fill(tmp_path / "another")
    after = validation(tmp_path / pattern)
    assert before
    assert {text for text in after if text.startswith(b"one ")} == before
    assert len(after) > len(before)


def test_a_folder_added_to_a_list_moves_no_document(tmp_path):
    for name in ("one", "two"):
        fill(tmp_path / name)
    before = validation(tmp_path / "one")
    both = validation(tmp_path / "one", tmp_path / "two")
    assert {text for text in both if text.startswith(b"one ")} == before


@pytest.mark.parametrize("path", [".", "*.txt", "[0-9]*"])
def test_a_single_folder_holds_out_by_the_name_in_it(path, tmp_path):
    fill(tmp_path / "one")
    names = {f"{number}.txt" for number in range(100) if held_out(f"{number}.txt", 0.2)}
    assert validation(tmp_path / "one" / path) == {f"one {name[:-4]}".encode() for name in names}


def test_names_tell_equal_keys_apart(tmp_path):
    for name in ("one", "two"):
        fill(tmp_path / name, [1])
    files = find_files([str(tmp_path / "one"), str(tmp_path / "two")])
    assert [(file.name, file.key) for file in files] == [("one/1.txt", "1.txt"), ("two/1.txt", "1.txt")]


@pytest.fixture
def locked(monkeypatch):
    """locked(path): listing that folder is refused, as without permission (tests may run as root)."""

    def lock(path):
        scandir = os.scandir

        def refusing(folder="."):
            if str(folder).rstrip("/") == str(path):
                raise PermissionError(13, "Permission denied", str(path))
            return scandir(folder)

        monkeypatch.setattr(os, "scandir", refusing)

    return lock


@pytest.mark.parametrize("pattern", [".", "*/*.txt", "**/*.txt", "secret"])
def test_a_folder_without_permission_is_named(pattern, locked, tmp_path):
    for name in ("open", "secret"):
        fill(tmp_path / name, [1])
    locked(tmp_path / "secret")
    with pytest.raises(UserError, match=r"cannot read .*secret: Permission denied"):
        find_files([str(tmp_path / pattern)])


def test_a_file_without_permission_is_named(monkeypatch, tmp_path):
    fill(tmp_path / "one", [1])

    def refuse(path, *arguments, **options):
        raise PermissionError(13, "Permission denied", str(path))

    source = FilesSource(str(tmp_path))
    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(UserError, match=r"cannot read .*1\.txt: Permission denied"):
        source.identity()


def test_other_sources_name_it_too(locked, monkeypatch, tmp_path):
    fill(tmp_path / "train", [1])
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    locked(tmp_path / "train")
    with pytest.raises(UserError, match=r"cannot read .*train: Permission denied"):
        StandardLibrarySource().identity()
    monkeypatch.setattr(os, "listdir", os.scandir)
    with pytest.raises(UserError, match=r"cannot read .*train: Permission denied"):
        list(PG19TextsSource(str(tmp_path)).documents("train"))


def test_links_that_are_not_followed_are_announced_once(capsys, tmp_path):
    fill(tmp_path / "one", [1, 2])
    fill(tmp_path / "elsewhere", [3])
    (tmp_path / "one" / "folder").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "one" / "file.txt").symlink_to(tmp_path / "elsewhere" / "3.txt")
    (tmp_path / "one" / "broken").symlink_to(tmp_path / "nowhere")
    (tmp_path / "one" / "broken too").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "one" / "pipe")
    for _ in range(2):
        assert [file.name for file in find_files([str(tmp_path / "one")])] == ["1.txt", "2.txt", "file.txt"]
    folder, broken, special = sorted(capsys.readouterr().err.splitlines(), key=lambda line: line.split()[4])
    assert "left out 1 link to a folder" in folder and "name the folder itself" in folder
    assert "left out 2 links that lead nowhere" in broken and "broken" in broken
    assert "left out 1 thing that is no file" in special


def test_a_link_that_is_named_is_followed(tmp_path):
    fill(tmp_path / "one", [1])
    (tmp_path / "link").symlink_to(tmp_path / "one")
    assert [file.name for file in find_files([str(tmp_path / "link")])] == ["1.txt"]
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no bytes"):
        find_files([str(tmp_path / "broken")])
