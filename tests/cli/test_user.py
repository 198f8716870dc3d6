"""Users that the system does not know have a home and a name all the same."""

import os
import pwd
from pathlib import Path

import pytest

from mambabyte.cli.user import ensure_home_and_name
from mambabyte.errors import UserError


@pytest.fixture(autouse=True)
def unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def nobody(number: int) -> None:
        raise KeyError(number)

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("HOME", "set, so that the end of the test brings it back")
    for name in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "environ", dict(os.environ))


def test_an_unknown_user_gets_a_private_home_and_a_name(tmp_path: Path) -> None:
    for _ in range(2):
        ensure_home_and_name()
        home = tmp_path / f"mambabyte-{os.getuid()}"
        assert Path(os.environ["HOME"]) == home
        assert home.stat().st_mode & 0o777 == 0o700
        assert os.environ["USER"] == f"user-{os.getuid()}"


def test_the_root_folder_that_docker_sets_is_no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.environ["HOME"] = "/"
    monkeypatch.setattr(os, "access", lambda path, mode: path != "/")
    ensure_home_and_name()
    assert os.environ["HOME"].startswith(str(tmp_path))


def test_a_home_that_can_be_written_is_kept(tmp_path: Path) -> None:
    os.environ["HOME"] = str(tmp_path)
    ensure_home_and_name()
    assert os.environ["HOME"] == str(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_another_users_folder_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000)
    (tmp_path / "mambabyte-4000000").mkdir()
    with pytest.raises(UserError, match="set HOME to one you can write"):
        ensure_home_and_name()
