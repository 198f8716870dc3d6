"""Names, paths and prompts are text: what is typed is what reaches the task."""

from __future__ import annotations

import shlex

import pytest

from mambabyte.cli.flags import command_parser
from mambabyte.commands import find


@pytest.mark.parametrize("file", ["notes.txt", "it's {a} \\ file, 'quoted'", "~/notes"])
def test_the_file_to_compress_needs_no_key(cli, file):
    for command in ("compress", "decompress"):
        assert cli(command, "--ckpt", "a", file, "-o", "out=put", "device=cpu") == 0
        assert (cli.jobs[0]["file"], cli.jobs[0]["out"]) == (file, "out=put")
    assert cli.complaint("compress", "ckpt=a") == "file is not set; add file=VALUE"


@pytest.mark.parametrize(
    "text",
    [
        "plain",
        "",
        "Call me, Ishmael: {a: [1]}",
        'it\'s "quoted"',
        "back\\slash \\' \\\\' end\\",
        "${seed} \\${x} \\\\${y} $HOME",
        "null",
        "a=b\nc\td",
        "čeština 語 🙂",
    ],
)
def test_every_character_of_a_prompt_stands_for_itself(cli, text):
    assert cli("generate", "--ckpt", "runs/a=1,b=2", "--prompt", text) == 0
    assert cli.jobs[0]["prompt"] == text
    assert cli.jobs[0]["ckpt"] == "runs/a=1,b=2"


@pytest.mark.parametrize(
    "typed",
    ["def ", "", "Hello, world", "null", "' x '", '"Yes," she said, "no"', "~/x", "${seed}", "1.10", "[a"],
)
def test_a_prompt_typed_as_an_override_is_text(cli, typed):
    assert cli("generate", "ckpt=a", f"prompt={typed}") == 0
    assert cli.jobs[0]["prompt"] == typed


def test_several_prompts_are_a_list_of_texts(cli):
    texts = ["a, b", "[c]", "it's ${x}", ""]
    for typed in (
        [f"prompt={text}" for text in texts],
        [word for text in texts for word in ("--prompt", text)],
        [f"prompt={texts[0]}", f"prompt={texts[1]}", "--prompt", texts[2], "--prompt", texts[3]],
    ):
        assert cli("generate", "ckpt=a", *typed) == 0
        assert cli.jobs[0]["prompt"] == texts
    assert cli("generate", "ckpt=a", "prompt=[a,b]") == 0
    assert cli.jobs[0]["prompt"] == "[a,b]"
    assert cli("generate", "ckpt=a", "--prompt-file", "a b.txt", "prompt_file=[c,~/d]", "prompt_file=-") == 0
    assert [file.rpartition("/")[2] for file in cli.jobs[0]["prompt_file"]] == ["c", "d", "-", "a b.txt"]


def test_stop_strings_are_text_or_a_list(cli):
    for typed, expected in (
        ([r"stop=\n\n"], r"\n\n"),
        (["stop=~/x"], "~/x"),
        (["--stop", "[a,b]"], "[a,b]"),
        ([r"stop=[\n,END]"], [r"\n", "END"]),
        ([r"stop=[\n,END]", "--stop", "x, y"], [r"\n", "END", "x, y"]),
    ):
        assert cli("generate", "ckpt=a", *typed) == 0
        assert cli.jobs[0]["stop"] == expected


def test_i_is_the_interactive_mode_of_generate_and_hydras_info_elsewhere(cli):
    assert cli("generate", "ckpt=a", "-i") == 0
    assert cli.jobs[0]["interactive"] is True
    assert "-i {config,defaults,searchpath}" in command_parser("eval", find("eval")).format_help()


@pytest.mark.parametrize(
    "text",
    [
        *("1.10", "2024_01_15", "77", "1e3", "true", "it's", 'a "b"', "a,b", "a=b", "[draft]", " spaced "),
        *("{x}", "two\nlines", "a\\b", "naïve", "range(1,3)"),
    ],
)
def test_names_and_paths_are_the_text_that_was_typed(cli, text, monkeypatch):
    assert cli("eval", f"ckpt={text}") == 0
    assert cli.jobs[0]["ckpt"] == text
    assert cli("eval", "--ckpt", text) == 0
    assert cli.jobs[0]["ckpt"] == text
    assert cli("compress", "ckpt=a", "--", text) == 0
    assert cli.jobs[0]["file"] == text
    assert cli("train", f"name={text}") == 0
    assert (cli.jobs[0]["name"], cli.jobs[0]["run_dir"]) == (text, f"runs/{text}")


def test_hydras_quotation_interpolation_and_sweeps_keep_their_meaning(cli):
    assert cli("train", "name='a b'", "run_dir=x/${name}/${seed}") == 0
    assert (cli.jobs[0]["name"], cli.jobs[0]["run_dir"]) == ("a b", "x/a b/0")
    assert cli("eval", "-m", "ckpt=1.10,a b") == 0
    assert [job["ckpt"] for job in cli.jobs] == ["1.10", "a b"]
    assert cli("eval", "-m", "ckpt=choice(a,b)") == 0
    assert [job["ckpt"] for job in cli.jobs] == ["a", "b"]
    assert cli("data", "inspect", "out=null") == 0
    assert cli.jobs[0]["out"] is None


def test_a_flag_names_data_of_any_name(cli):
    for text in ("it's ${a}, [b]=c ", "1.10", "a,b"):
        assert cli("train", "--data", text) == 0
        assert cli.jobs[0]["data"]["path"] == text


def test_the_file_to_measure_needs_no_flag(cli):
    for text in ("notes.txt", "it's ${a}, [b] c", "1.10"):
        assert cli("eval", text, "--bpb", "ckpt=a") == 0
        assert cli.jobs[0]["data"]["path"] == text
    assert cli("train", r"name=a\${b}") == 0
    assert cli.jobs[0]["name"] == "a${b}"


def test_a_file_with_an_equals_sign_is_the_file_to_compress(cli):
    (cli.folder / "a=b.txt").write_text("text")
    assert cli("compress", "a=b.txt", "ckpt=a") == 0
    assert cli.jobs[0]["file"] == "a=b.txt"
    assert "there is no setting b" in cli.complaint("compress", "b=a.txt", "ckpt=a")
    assert "takes one FILE, not 2" in cli.complaint("compress", "a", "b", "ckpt=a")
    assert "takes no words after --" in cli.complaint("train", "--", "a")


def test_advice_survives_a_shell(cli):
    for typed in ("seed=it's", "seed=${a"):
        (word,) = shlex.split(cli.complaint("train", typed).partition("the whole: ")[2])
        assert f"seed must be an integer, not {typed.partition('=')[2]!r}" in cli.complaint("train", word)


def test_an_empty_path_is_refused_and_a_model_is_one_choice(cli, monkeypatch):
    assert cli.complaint("train", "run_dir=") == "run_dir must be a path, and is empty"
    assert cli.complaint("eval", "ckpt=") == "ckpt must be a path, and is empty"
    assert "model takes one choice, not [small,large]" in cli.complaint("train", "model=[small,large]")
    for group in ("trainer", "+experiment"):  # Hydra would merge them
        assert "takes one choice, not [a,b]" in cli.complaint("train", f"{group}=[a,b]")
    monkeypatch.setenv("MAMBABYTE_DATA", "")
    assert "MAMBABYTE_DATA is empty" in cli.complaint("data", "prepare")


def test_a_path_below_home_is_expanded(cli, monkeypatch):
    monkeypatch.setenv("HOME", "/home/O'Brien, Pat")
    assert cli("train", "data.path=~/notes/*.txt") == 0
    assert cli.jobs[0]["data"]["path"] == "/home/O'Brien, Pat/notes/*.txt"
    assert cli("eval", "ckpt=~") == 0
    assert cli.jobs[0]["ckpt"] == "/home/O'Brien, Pat"
