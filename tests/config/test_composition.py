"""The settings of each command against its YAML, and the shipped experiments."""

from __future__ import annotations

import re
from dataclasses import MISSING, fields

import pytest
from hydra.core.global_hydra import GlobalHydra

from mambabyte import commands
from mambabyte.cli.help import describe_settings
from mambabyte.commands import NAMES
from mambabyte.config.composition import config_dir
from mambabyte.config.settings import fill, to_plain
from mambabyte.errors import UserError
from mambabyte.training.settings import TrainSettings

NEEDED = {
    "eval": ["ckpt=a"],
    "generate": ["ckpt=a"],
    "drafter": ["ckpt=a", "out=b"],
    "serve": ["ckpt=a"],
    "export": ["ckpt=a", "out=b"],
    "compress": ["ckpt=a", "file=b"],
    "decompress": ["ckpt=a", "file=b"],
    "lineage": ["out=b"],
}
COMPOSED = [name for name in NAMES if hasattr(commands.find(name).settings, "yaml")]


@pytest.mark.parametrize("command", COMPOSED)
def test_the_settings_of_a_command_are_those_of_its_yaml(command):
    schema = commands.find(command).settings
    settings = schema.compose(*NEEDED.get(command, []))
    assert fill(schema, to_plain(settings)) == settings
    own = [f for f in fields(schema) if f.name != "data"]
    assert all(f.default is MISSING for f in own), "defaults live in the YAML alone"
    device = "cpu" if "compress" in command else "auto"  # the same kind for both, whatever the machine has
    value = {"device": device, "name": "default", "json": False, "out": "b"}
    key = next(key for key in value if hasattr(settings, key))
    assert str(getattr(settings, key)) == str(value[key])


@pytest.mark.parametrize(
    ("command", "choice"),
    [
        *((name, "") for name in COMPOSED),
        *(
            ("train", f"{path.parent.name}={path.stem}")
            for group in ("data", "model", "optimizer", "lora", "trainer", "budget", "logger", "callbacks")
            for path in sorted((config_dir() / group).glob("*.yaml"))
        ),
        *(
            ("train", f"model=mixer_stack mixer={path.stem}")
            for path in sorted((config_dir() / "mixer").glob("*.yaml"))
        ),
    ],
)
def test_help_describes_every_setting(command, choice, monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "1")
    monkeypatch.setenv("SLURM_NNODES", "1")
    text = describe_settings(commands.find(command).settings, choice.split(), None)
    lines = text.partition("Settings (key=value):\n")[2].splitlines()
    keys = [line for line in lines if re.match(r" *\w+: ", line) or re.match(r" *\w+:  #", line)]
    assert keys
    assert [line for line in keys if "  # " not in line] == []


def test_help_lists_the_groups_that_a_command_uses_and_no_others():
    expected = {"generate": [], "eval": ["data"], "data prepare": ["data"], "data inspect": ["data"]}
    for command, groups in expected.items():
        text = describe_settings(commands.find(command).settings, [], None)
        listed = text.partition("Settings (key=value):\n")[0].splitlines()[1:]
        assert [line.split(":")[0].strip() for line in listed if line] == groups
    text = describe_settings(commands.find("eval").settings, [], None)
    assert "wikipedia_mixture  # null: the data the checkpoint was trained on" in text


def test_composing_leaves_no_global_state():
    settings = TrainSettings.compose("experiment=tiny", "model.d_model=32")
    assert (settings.name, settings.model.d_model) == ("tiny", 32)
    assert not GlobalHydra.instance().is_initialized()
    with pytest.raises(UserError, match="there is no experiment 'tinny'; did you mean tiny"):
        TrainSettings.compose("experiment=tinny")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=HNet"], "there is no model 'HNet'; did you mean hnet"),
        (["model=hnet", "model.n_layer=4"], r"there is no setting model\.n_layer; choose from arch_layout, "),
        (
            ["experiment=copying", "model=hnet"],
            "this model is HNet: leave it out, or the experiment that sets",
        ),
    ],
)
def test_what_there_is_not_is_answered_with_what_there_is(overrides, message):
    with pytest.raises(UserError, match=message):
        TrainSettings.compose(*overrides)


EXPERIMENTS = sorted(path.stem for path in (config_dir() / "experiment").glob("*.yaml"))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_composes_under_a_name_of_its_own(name):
    settings = TrainSettings.compose(f"experiment={name}")
    assert str(settings.run_dir) == f"runs/{settings.name}"
    assert settings.name != "default"


def test_the_quickstart_is_among_the_experiments():
    assert "quickstart" in EXPERIMENTS


@pytest.mark.parametrize(
    ("added", "key"),
    [
        *((f"+{key}=1", key) for key in ("other", "nonsense", "_target_", "data.weights", "data._target_")),
        *((f"+{key}=1", key) for key in ("trainer._target_", "callbacks.x", "logger._target_", "budget.x")),
        *((f"+{key}=1", key) for key in ("optimizer.momentum", "model.width", "data.text_colum")),
    ],
)
def test_only_what_the_program_reads_may_stand_in_a_configuration(added, key):
    with pytest.raises(UserError, match=f"there is no setting {re.escape(key)}(;|$)"):
        TrainSettings.compose("data=files", added)


def sections(command: str) -> list[str]:
    """The sections of a command's configuration, each with the dot behind it; the top level is empty."""
    overrides = [*NEEDED.get(command, []), *([] if command == "train" else ["data=stdlib"])]
    schema = commands.find(command).settings
    if "data" not in {field.name for field in fields(schema)}:
        return [""]
    composed = schema.compose_yaml(overrides)[0]
    found = [f"{key}." for key in composed if hasattr(composed[key], "keys")]
    return ["", *found, "data.source."]


@pytest.mark.parametrize("command", COMPOSED)
def test_every_section_of_every_command_refuses_what_it_does_not_know(command):
    schema, needed = commands.find(command).settings, NEEDED.get(command, [])
    found = sections(command)
    if command == "train":
        groups = ("budget", "callbacks", "data", "data.source", "logger", "model", "optimizer", "trainer")
        assert {*found} == {"", *(f"{group}." for group in groups)}
    for section in found:
        data = ["data=stdlib"] if section.startswith("data.") else []
        with pytest.raises(UserError, match=f"there is no setting {re.escape(section)}nonsense; choose from"):
            schema.compose(*needed, *data, f"+{section}nonsense=1").data.build_source()


@pytest.mark.parametrize(
    ("corpus", "key"),
    [
        ("stdlib", "name"),  # ${name} in run_dir is the run's name
        ("stdlib", "language"),
        ("hf", "language"),
        ("hf", "download"),  # which the source has, under data.source alone
    ],
)
def test_a_short_name_that_this_corpus_does_not_have_is_refused(corpus, key):
    with pytest.raises(UserError, match=rf"there is no setting data\.{key};"):
        TrainSettings.compose(f"data={corpus}", f"+data.{key}=a")


@pytest.mark.parametrize(
    ("corpus", "given", "value"),
    [
        ("files", "data.source.path=2024_01_15", "2024_01_15"),
        ("files", "data.source.path=[1.10,b]", ["1.10", "b"]),
        ("pg19", "data.source.books=null", None),
        ("wikipedia", "data.configuration=2022_03", "2022_03"),
        ("wikipedia", "data.source.split_names.test=1.10", {"train": "train", "test": "1.10"}),
    ],
)
def test_a_setting_of_the_source_may_be_given_without_its_short_name(corpus, given, value):
    source = TrainSettings.compose(f"data={corpus}", given).data.source
    key = given.partition("=")[0].removeprefix("data.").removeprefix("source.").partition(".")[0]
    found = source[key]
    assert (found if not isinstance(value, dict) else {each: found[each] for each in value}) == value


def test_short_names_of_ones_own_are_those_that_an_interpolation_reads():
    own = ["data=files", "+data.corpus=books", "data.path='${.corpus}/*.txt'"]
    assert TrainSettings.compose(*own).data.source["path"] == "books/*.txt"
    named = ["data=stdlib", "+data.label=x", "name='${data.label}-1'"]
    assert TrainSettings.compose(*named).name == "x-1"


@pytest.mark.parametrize("sign", ["", "+", "++"])
def test_an_optimizer_of_another_library_is_refused_and_never_replaced_by_adamw(sign):
    with pytest.raises(UserError, match=r"optimizer\._target_"):
        TrainSettings.compose(f"{sign}optimizer._target_=torch.optim.SGD")


def test_a_source_has_only_its_own_settings_and_they_are_named_by_their_keys():
    for given, sentence in [
        ("+data.source.weights=1", "there is no setting data.source.weights"),
        ("data.source.download=3", "data.source.download must be true or false"),
        ("data.source.split_names=3", "data.source.split_names must be"),
        ("data.source.split_names=null", "data.source.split_names must be a section"),
        ("data.retries=-1", "data.retries must be at least 0"),
        ("data.source._target_=[a]", "data.source needs a _target_"),
    ]:
        with pytest.raises(UserError, match=sentence):
            TrainSettings.compose("data=hf", "data.name=a/b", given).data.build_source()
