"""Standard output and standard error that are closed, full, ASCII only, or a terminal."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import mambabyte

# `doctor`, because Hydra, which it does without, takes a second to import.
PROGRAM = """
import dataclasses, sys
from mambabyte import commands
from mambabyte.cli.main import main
def run(settings):
    {body}
sys.exit(main({argv}, lambda name: dataclasses.replace(commands.find(name), run=run)))
"""
FULL = Path("/dev/full")
full_device = pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")
SENTENCE = "mambabyte: standard output cannot be written (No space left on device): free some space, or send"


def run(body: str = "pass", argv: tuple[str, ...] = ("doctor",), redirect: str = "", **environment: str):
    program = PROGRAM.format(body=body, argv=list(argv))
    folder = str(Path(mambabyte.__file__).parents[1])
    return subprocess.run(
        ["sh", "-c", f'exec "$0" -c "$1" {redirect}', sys.executable, program],
        capture_output=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": folder, **environment},
    )


@full_device
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("body", ["print('x')", "print('x' * 100_000)", "print('x', flush=True)"])
def test_a_full_standard_output_is_one_sentence(body: str, unbuffered: str) -> None:
    done = run(body, redirect="> /dev/full", PYTHONUNBUFFERED=unbuffered)
    assert done.stderr.decode().startswith(SENTENCE)
    assert done.stderr.count(b"\n") == 1
    assert done.returncode == 1


@full_device
@pytest.mark.parametrize("argv", [["--help"], ["--version"], ["doctor", "--help"]])
def test_so_it_is_for_help(argv: list[str]) -> None:
    done = run(argv=tuple(argv), redirect="> /dev/full")
    assert done.stderr.decode().startswith(SENTENCE)
    assert (done.stderr.count(b"\n"), done.returncode) == (1, 1)


@full_device
def test_a_full_standard_error_ends_nothing() -> None:
    body = "[print('note ' * 100, file=sys.stderr, flush=True) for _ in range(100)]; print('result')"
    done = run(body, redirect="2> /dev/full")
    assert (done.stdout, done.returncode) == (b"result\n", 0)


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_closed_pipe_is_quiet(unbuffered: str) -> None:
    program = PROGRAM.format(body="[print('x' * 100) for _ in range(10_000)]", argv=["doctor"])
    environment = {**os.environ, "PYTHONPATH": str(Path(mambabyte.__file__).parents[1])}
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", program],
        stdout=write,
        stderr=subprocess.PIPE,
        timeout=60,
        env={**environment, "PYTHONUNBUFFERED": unbuffered},
    )
    os.close(write)
    assert (done.stderr, done.returncode) == (b"", 1)


def test_another_broken_pipe_is_no_quiet_end() -> None:
    done = run("raise BrokenPipeError('a worker has died')")
    assert done.stderr.endswith(b"BrokenPipeError: a worker has died\n")
    assert done.returncode == 1


@pytest.mark.parametrize("redirect", [">&-", "2>&-", ">&- 2>&- <&-"])
def test_closed_streams_write_nowhere_and_no_file_takes_their_place(redirect: str, tmp_path: Path) -> None:
    body = f"""
    sys.stdout.isatty(), sys.stderr.isatty()
    file = open({str(tmp_path / "file")!r}, "w")
    print("to standard output"); print("to standard error", file=sys.stderr)
    import os
    os.write(1, b"raw"); os.write(2, b"raw")
    """
    done = run(body, redirect=redirect)
    assert done.returncode == 0
    assert (tmp_path / "file").read_text() == ""


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
)
def test_what_ascii_lacks_is_written_as_escapes(environment: dict[str, str]) -> None:
    done = run(r"print('\xe9 \u8a9e'); print('\xfc', file=sys.stderr)", **environment)
    assert (done.stdout, done.stderr) == (b"\\xe9 \\u8a9e\n", b"\\xfc\n")


def test_names_that_are_no_text_are_written_as_escapes() -> None:
    done = run("print(bytes([97, 255]).decode('utf-8', 'surrogateescape'))", PYTHONIOENCODING="utf-8")
    assert (done.stdout, done.returncode) == (b"a\\udcff\n", 0)


def test_a_terminal_gets_no_commands() -> None:
    body = r"""
    from mambabyte.errors import UserError
    print("data: \x1b[31m")
    raise UserError("there is no file '\x1b]0;x\x07'")
    """
    done = run(body, PYTHONIOENCODING="utf-8")
    assert done.stdout.decode() == "data: ␛[31m\n"
    assert done.stderr.decode() == "mambabyte: there is no file '␛]0;x␇'\n"
    note = run(
        r"print('mambabyte: reads \x1b]0;x\x07', file=sys.stderr); print('\rbar', end='', file=sys.stderr)",
        PYTHONIOENCODING="utf-8",
    )
    assert note.stderr.decode() == "mambabyte: reads ␛]0;x␇\n\rbar"
    fault = run(r"raise KeyError('\x1b[31m') from RuntimeError('\x9b31m')", PYTHONIOENCODING="utf-8")
    assert b"\x1b" not in fault.stderr and "\x9b" not in fault.stderr.decode()


def test_a_removed_working_folder_is_one_sentence(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    program = PROGRAM.format(body="pass", argv=["doctor"])
    done = subprocess.run(
        ["sh", "-c", 'cd "$0" && rmdir "$0" && exec "$1" -c "$2"', folder, sys.executable, program],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(Path(mambabyte.__file__).parents[1])},
    )
    assert done.stderr == "mambabyte: the current folder was removed: change to another one (cd)\n"
    assert done.returncode == 1


def test_our_own_colours_reach_the_reader_and_nothing_elses_does() -> None:
    coloured = "from mambabyte.runtime.terminal import print_coloured as p; p('\\x1b[1mbold')"
    body = f"{coloured}; print('\\x1b[1mdata')"
    assert run(body).stdout == "\x1b[1mbold\n␛[1mdata\n".encode()


@full_device
def test_raw_bytes_meet_a_full_or_closed_output_like_text() -> None:
    body = "from mambabyte.runtime.terminal import write_bytes as w; [w(b'\\xff') for _ in range(100_000)]"
    done = run(body, redirect="> /dev/full")
    assert done.stderr.decode().startswith(SENTENCE)
    done = run(body, redirect="| head -c 3")
    assert (done.stdout, done.stderr) == (b"\xff\xff\xff", b"")
