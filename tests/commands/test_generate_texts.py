"""`mambabyte generate` with several texts, files, saved states, Ctrl-C and an interactive user."""

from __future__ import annotations

import base64
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import mambabyte
from mambabyte.cli.main import main
from mambabyte.commands import generate
from mambabyte.errors import UserError
from mambabyte.generation.continuations import Continuation
from mambabyte.models import ByteLM, MambaByteConfig, TransformerConfig
from mambabyte.runtime.progress import Progress

CONFIGS = {
    "mambabyte": MambaByteConfig(d_model=16, n_layer=1),
    "transformer": TransformerConfig(d_model=16, n_layer=1, n_head=2),
}
FILE = b"\xff\x00 any bytes \xf0\x9f" * 300  # three pieces of a prompt


@pytest.fixture(scope="module", params=CONFIGS)
def ckpt(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = CONFIGS[request.param].build().eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(10)  # logits far enough apart for rounding to decide nothing
    folder = tmp_path_factory.mktemp("models") / request.param
    mambabyte.save(model, folder)
    return folder


@pytest.fixture
def run(configure: Callable, ckpt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """Runs the command in a folder that holds FILE as `file`."""
    monkeypatch.chdir(tmp_path)
    Path("file").write_bytes(FILE)
    return lambda *overrides: generate.run(configure("generate", f"ckpt={ckpt}", "device=cpu", *overrides))


@pytest.fixture
def texts(run: Callable, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[Any]]:
    """The texts of the JSON object that the command prints."""

    def texts(*overrides: str) -> list[Any]:
        run("json=true", *overrides)
        return json.loads(capsys.readouterr().out)["texts"]

    return texts


@pytest.fixture
def model(ckpt: Path) -> ByteLM:
    return mambabyte.load(ckpt)


def written(text: dict[str, Any]) -> bytes:
    return base64.b64decode(text["text_base64"])


@contextmanager
def standard_input(path: str) -> Iterator[None]:
    kept = os.dup(0)
    try:
        with open(path, "rb") as file:
            os.dup2(file.fileno(), 0)
        yield
    finally:
        os.dup2(kept, 0)
        os.close(kept)


class TestSeveral:
    def test_each_text_is_what_it_is_alone(self, texts, model: ByteLM) -> None:
        together = texts(
            "prompt=ab", "prompt=é longer", "prompt_file=file", "samples=2", "batch_size=4", "bytes=9"
        )
        alone = [text for prompt in ("prompt=ab", "prompt=é longer", "prompt_file=file")
                 for text in (texts(prompt, "bytes=9"), texts(prompt, "bytes=9", "samples=2"))]  # fmt: skip
        assert together[::2] == [text for (text,) in alone[::2]]
        assert together == [text for pair in alone[1::2] for text in pair]
        prompts = [b"ab", "é longer".encode(), FILE]
        expected = [mambabyte.generate(model, prompt, 9) for prompt in prompts]
        assert [written(text) for text in together[::2]] == expected
        assert [text["prompt_bytes"] for text in together[::2]] == [len(prompt) for prompt in prompts]
        assert len({written(text) for text in together}) > 3

    def test_greedy_texts_are_the_argmax_of_forward(self, texts, model: ByteLM) -> None:
        for text in texts("prompt=ab", "prompt=abcdef", "prompt=x", "temperature=0", "bytes=7"):
            whole = text["prompt"].encode() + written(text)
            with torch.no_grad():
                assert bytes(model(whole)[0].argmax(-1).tolist())[-8:-1] == written(text)

    def test_they_are_shown_in_their_order_under_headings(self, run, capsys) -> None:
        run("prompt=a\tb", "prompt_file=file", "samples=2", "bytes=8", "stop=never")
        shown = capsys.readouterr()
        lines = shown.out.split("\n")
        headings = [line for line in lines if line.startswith("== ")]
        assert headings == [f"== {name}, sample {i} ==" for name in ("'a␉b'", "file") for i in (0, 1)]
        assert lines[1].startswith("a\tb")  # what was typed comes before its text, and a file does not
        assert "any bytes" not in shown.out
        assert shown.err.startswith(f"mambabyte: read {3 + len(FILE):,} bytes in ")
        assert "wrote 32 bytes in " in shown.err

    def test_raw_bytes_and_states_are_of_one_text(self, run) -> None:
        for override in ("raw=true", "out=x"):
            with pytest.raises(UserError, match="raw bytes of 2 texts could not be told apart"):
                run("prompt=a", "samples=2", override)
        with pytest.raises(UserError, match="save_state keeps the state after one text, not 2"):
            run("prompt=a", "prompt=b", "save_state=x")


class TestPrompts:
    def test_standard_input_is_read_where_it_is_redirected(self, texts) -> None:
        (expected,) = texts("prompt_file=file", "bytes=9")
        for overrides in ([], ["prompt_file=-"]):
            with standard_input("file"):
                (text,) = texts("bytes=9", *overrides)
            assert text == {**expected, "prompt_file": "-"}
        with standard_input("file"):  # and not where there is a prompt
            (text,) = texts("bytes=9", "prompt=")
        assert text["prompt_bytes"] == 0

    def test_an_empty_file_is_an_empty_prompt(self, texts, model: ByteLM) -> None:
        Path("empty").touch()
        (text,) = texts("prompt_file=empty", "bytes=9")
        assert (written(text), text["prompt_bytes"]) == (mambabyte.generate(model, b"", 9), 0)

    def test_bytes_that_are_no_text_are_in_the_json_twice(self, texts) -> None:
        (text,) = texts("prompt=a\udcff\x1b", "bytes=60", "temperature=2")
        assert (text["prompt"], base64.b64decode(text["prompt_base64"])) == ("a\ufffd\x1b", b"a\xff\x1b")
        assert written(text).decode("utf-8", "replace") == text["text"]
        assert (text["bytes"], text["finish_reason"], text["prompt_file"]) == (60, "length", None)

    def test_valid_utf8_completes_the_character_of_a_prompt(self, texts) -> None:
        (text,) = texts("prompt_file=file", "valid_utf8=true", "bytes=40", "temperature=2")
        assert (b"\xf0\x9f" + written(text)).decode("utf-8")


class TestStops:
    def test_escapes_stand_for_bytes(self, run, texts, monkeypatch) -> None:
        produced = [*b"one\r\ttwo\\\xff three", *b"!" * 99]
        monkeypatch.setattr(
            "mambabyte.generation.continuations.generate", lambda *arguments: iter(produced)
        )  # fmt: skip
        for typed, expected in (
            (r"stop=\r\t", b"one"),
            (r"stop=\\\xff", b"one\r\ttwo"),
            (r"stop=[\xFF,never]", b"one\r\ttwo\\"),
        ):
            (text,) = texts("prompt=a", typed)
            assert (written(text), text["finish_reason"]) == (expected, "stop")

    @pytest.mark.parametrize("typed", [r"\q", "a\\", r"\xf", r"\xgg"])
    def test_another_escape_is_refused(self, typed: str, run) -> None:
        with pytest.raises(UserError, match="which means nothing"):
            run("prompt=a", f"stop=['{typed}']" if typed != "a\\" else f"stop={typed}")

    def test_an_empty_one_is_refused(self, run) -> None:
        with pytest.raises(UserError, match="a stop string must have a byte or more"):
            run("prompt=a", "stop=")


class TestStates:
    def test_a_prompt_is_read_once_and_continued_twice(self, run, texts) -> None:
        assert texts("prompt_file=file", "bytes=0", "save_state=read.state") == []
        for override, more in (("prompt=", b""), ("prompt= more", b" more")):
            Path("whole").write_bytes(FILE + more)
            (text,), (whole,) = (
                texts("state=read.state", override, "bytes=9"),
                texts("prompt_file=whole", "bytes=9"),
            )
            assert written(text) == written(whole)
            assert text["prompt_bytes"] == len(more)

    def test_the_state_after_a_text_goes_on_from_it(self, texts) -> None:
        (first,) = texts("prompt=ab", "bytes=7", "save_state=after.state")
        (second,) = texts(
            "state=after.state", "prompt=", "bytes=5", "temperature=0", "save_state=later.state"
        )
        (whole,) = texts(
            *(f"prompt=ab{written(first).decode('utf-8', 'surrogateescape')}",), "bytes=5", "temperature=0"
        )
        assert written(second) == written(whole)

    def test_what_cannot_work_is_refused_before_the_model_is_read(self, run, configure) -> None:
        Path("there").touch()
        for overrides, message in (
            (["save_state=there"], "'there' already exists; remove it or choose another save_state="),
            (["out=there"], "'there' already exists; remove it or choose another out="),
            (["save_state=no/x"], "cannot write 'no/x' .*: make its folder first"),
            (["out=no/x"], "cannot write 'no/x' .*: make its folder first"),
            (["state=no"], "there is no file 'no' with a saved state"),
            (["prompt_file=no"], "there is no file 'no' with a prompt"),
            (["prompt_file=."], "'.' is a folder"),
            (["prompt_file=[-,-]"], "standard input can be read once"),
            (["bytes=0"], "bytes=0 writes nothing"),
            (["bytes=0", "save_state=x", "raw=true"], "bytes=0 writes nothing"),
            (["interactive=true", "prompt_file=-"], "reads what is typed from standard input"),
            (["interactive=true", "json=true"], "interactive=true shows one text"),
            (["json=true", "raw=true"], "json=true prints one JSON object"),
        ):
            with pytest.raises(UserError, match=message):
                generate.run(configure("generate", "ckpt=nowhere", "prompt=a", *overrides))


@pytest.fixture
def ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send this process SIGINT when the first text's sixth byte comes."""
    push = Continuation.push

    def interrupted(self: Continuation, byte: int) -> bytes:
        if (self.drawn, self.index) == (5, 0):
            os.kill(os.getpid(), signal.SIGINT)
        return push(self, byte)

    monkeypatch.setattr(Continuation, "push", interrupted)


@pytest.mark.usefixtures("run")
class TestInterrupted:
    def start(self, ckpt: Path, *arguments: str) -> int:
        common = [f"ckpt={ckpt}", "device=cpu", "bytes=1000000", "stop=never, but may begin"]
        return main(["generate", *common, *arguments])

    def test_text_is_kept(self, ckpt: Path, ctrl_c: None, model: ByteLM, capfd) -> None:
        expected = b"ab" + mambabyte.generate(model, b"ab", 6)
        assert self.start(ckpt, "prompt=ab") == 130
        shown = capfd.readouterr()
        assert shown.err.endswith("mambabyte: stopped\n") and "wrote 6 bytes" in shown.err
        plain = generate.visible(expected.decode("utf-8", "replace"))
        assert shown.out == plain + "\n"

    def test_a_raw_file_is_complete_to_there(self, ckpt: Path, ctrl_c: None, model: ByteLM) -> None:
        assert self.start(ckpt, "prompt=ab", "out=raw") == 130
        assert Path("raw").read_bytes() == b"ab" + mambabyte.generate(model, b"ab", 6)

    def test_json_is_one_object_that_says_so(self, ckpt: Path, ctrl_c: None, model: ByteLM, capfd) -> None:
        assert self.start(ckpt, "prompt=ab", "prompt=x", "--json") == 130
        found = json.loads(capfd.readouterr().out)
        assert found["interrupted"] is True and found["bytes"] == 12
        for text in found["texts"]:
            assert text["finish_reason"] == "interrupted"
            assert written(text) == mambabyte.generate(model, text["prompt"].encode(), 6)

    def test_so_it_is_while_a_prompt_is_read(self, ckpt: Path, monkeypatch, capfd) -> None:
        show = Progress.show
        monkeypatch.setattr(
            Progress, "show", lambda *done: (show(*done), os.kill(os.getpid(), signal.SIGINT))
        )
        for command in (["prompt_file=file"], ["prompt_file=file", "bytes=0", "save_state=a.state"]):
            assert self.start(ckpt, *command, "--json") == 130
            shown = capfd.readouterr()
            found = json.loads(shown.out)
            assert (found["texts"], found["interrupted"], found["bytes"]) == ([], True, 0)
            assert shown.err.endswith("mambabyte: stopped\n")
        assert not Path("a.state").exists()

    def test_the_state_is_saved_there(self, ckpt: Path, ctrl_c: None, model: ByteLM, texts) -> None:
        assert self.start(ckpt, "prompt=ab", "out=raw", "save_state=a.state") == 130
        context = mambabyte.load_context("a.state", model)
        assert context.tail == Path("raw").read_bytes()


class TestInteractive:
    @pytest.fixture
    def turns(self, run, capsys) -> Callable[..., list[str]]:
        def turns(typed: bytes, *overrides: str) -> list[str]:
            Path("typed").write_bytes(typed)
            with standard_input("typed"):
                run("interactive=true", "bytes=6", "temperature=0", *overrides)
            return capsys.readouterr().out.split("\n")[:-1]

        return turns

    @staticmethod
    def shown(data: bytes) -> list[str]:
        return data.decode("utf-8", "replace").split("\n")

    def test_each_text_follows_what_was_written_before(self, turns, model: ByteLM) -> None:
        first = mambabyte.generate(model, b"say\nab", 6, temperature=0)
        second = mambabyte.generate(model, b"say\nab" + first, 6, temperature=0)
        third = mambabyte.generate(model, b"say\nab" + first + second + b"\xffx", 6, temperature=0)
        expected = [line for text in (first, second, third) for line in self.shown(text)]
        assert [generate.visible(line) for line in expected] == turns(b"say\\\nab\n\n\xffx\n")

    def test_undo_and_again(self, turns, model: ByteLM) -> None:
        a = mambabyte.generate(model, b"ab", 6, temperature=0)
        after = mambabyte.generate(model, b"ab" + a + b"cd", 6, temperature=0)
        expected = [line for text in (a, a, after, after) for line in self.shown(text)]
        typed = b"/undo\n/again\nab\n/again\ncd\n/undo\ncd\n"
        assert [generate.visible(line) for line in expected] == turns(typed)

    def test_however_often_ctrl_c_is_pressed_the_text_goes_on_from_there(
        self, turns, model: ByteLM, monkeypatch
    ) -> None:
        push = Continuation.push

        def interrupted(row: Continuation, byte: int) -> bytes:
            if row.drawn == 2:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)
            return push(row, byte)

        monkeypatch.setattr(Continuation, "push", interrupted)
        shown = turns(b"ab\ncd\n")
        first = mambabyte.generate(model, b"ab", 3, temperature=0)
        second = mambabyte.generate(model, b"ab" + first + b"cd", 3, temperature=0)
        assert shown == [generate.visible(line) for text in (first, second) for line in self.shown(text)]

    def test_it_begins_after_a_state_and_leaves_one(self, run, turns, model: ByteLM, tmp_path: Path) -> None:
        run("prompt=the", "bytes=0", "save_state=begin.state")
        shown = turns(b" end\n", "state=begin.state", "save_state=end.state", "prompt=x")
        text = mambabyte.generate(model, b"thex end", 6, temperature=0)
        assert shown == [generate.visible(line) for line in self.shown(text)]
        assert mambabyte.load_context("end.state", model).tail == b"thex end" + text


def until(terminal: int, expected: bytes) -> bytes:
    """What a terminal shows until, and with, what matches a regular expression."""
    deadline, seen = time.monotonic() + 120, b""
    while not re.search(expected, seen):
        assert time.monotonic() < deadline, seen
        if select.select([terminal], [], [], 1)[0]:
            seen += os.read(terminal, 65536)
    return seen


def test_a_user_at_a_terminal_edits_stops_and_goes_on(finished: Path) -> None:
    ours, theirs = pty.openpty()
    # Opened in a session of its own, it is the terminal whose Ctrl-C reaches the program.
    program = f'exec "$0" "$@" < {os.ttyname(theirs)} > {os.ttyname(theirs)} 2>&1'
    command = [sys.executable, "-m", "mambabyte", "generate", f"ckpt={finished}", "-i", "bytes=100000000"]
    with subprocess.Popen(
        ["sh", "-c", program, *command, "device=cpu"],
        start_new_session=True,
        env={**os.environ, "TERM": "dumb"},
    ) as process:
        try:
            until(ours, b"> ")
            for typed in ("thé\x7fe quick\n", "\n"):
                os.write(ours, typed.encode())
                until(ours, rb"\n[^\r\n]{3}")  # of the continuation
                os.write(ours, b"\x03")
                until(ours, b"\r\n> ")
            os.write(ours, b"\x04")
            assert b"mambabyte: read 9 bytes" in until(ours, rb" bytes/s\)\r\n")
            assert process.wait(60) == 0
        finally:
            process.kill()
            os.close(ours)
            os.close(theirs)
