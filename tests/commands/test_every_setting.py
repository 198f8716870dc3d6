"""Every setting of every command with values that are wrong, huge or of another type: it is obeyed, or
answered with one sentence."""

from __future__ import annotations

import copy
import errno
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mambabyte import commands
from mambabyte.cli.main import main
from mambabyte.commands import NAMES
from mambabyte.config.composition import plain
from mambabyte.config.settings import fill
from mambabyte.data.settings import DataSettings
from mambabyte.errors import UserError
from mambabyte.evaluation import Protocol
from mambabyte.generation import Sampler
from mambabyte.training.planning import autotune
from mambabyte.training.planning.memory_estimate import MemoryBudget, on_meta
from mambabyte.training.planning.plan import plan
from mambabyte.training.settings import TrainSettings

VALUES = [
    *("text", "", -1, 0, 10**18, 1e30, -0.5, None, True, [], [1], ["text"], {}, {"a": 1}),
    *(float("nan"), float("inf"), float("-inf"), 10**100, 10**400),
    *(7, 10**4, 10**6, 10**9, 2**32, 10**12, 10**13, 1e-30),
]
NEEDED = {
    "eval": ["ckpt=a", "data=hf", "data.name=a/b"],
    "generate": ["ckpt=a"],
    "drafter": ["ckpt=a", "data=files", "data.path=a"],
    "serve": ["ckpt=a"],
    "export": ["ckpt=a", "out=b"],
    "compress": ["ckpt=a", "file=b"],
    "decompress": ["ckpt=a", "file=b"],
    "data prepare": ["data=files", "data.path=a"],
    "data inspect": ["data=pg19_texts"],
}
COMPOSED = [name for name in NAMES if hasattr(commands.find(name).settings, "yaml")]
MODELS = ["small", "cnn", "gated_s4d", "hnet", "lstm", "megabyte", "perceiver_ar", "spacebyte"]
MODELS += ["transformer", "mixer_stack mixer=ssd", "hybrid"]
Place = tuple[Any, ...]


def composed(schema: Any, *overrides: str) -> dict[str, Any]:
    return plain(schema.compose_yaml(overrides)[0])


def leaves(values: Any, place: Place = ()) -> Iterator[Place]:
    """The places of all values, sections and items of lists included."""
    if place:
        yield place
    if isinstance(values, (dict, list)):
        for key, value in values.items() if isinstance(values, dict) else enumerate(values):
            yield from leaves(value, (*place, key))


def mutations(values: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for place in leaves(values):
        for value in VALUES:
            changed = copy.deepcopy(values)
            section: Any = changed
            for key in place[:-1]:
                section = section[key]
            section[place[-1]] = value
            yield f"{'.'.join(map(str, place))}={str(value)[:20]}", changed


def use(settings: Any) -> None:
    """What a command does with its settings before it reads a file."""
    if isinstance(getattr(settings, "data", None), DataSettings):
        settings.data.build_source()
    if hasattr(settings, "protocol"):
        length = settings.context_length or 8
        Protocol(settings.protocol, length, settings.stride, settings.batch_size, settings.precision)
    if hasattr(settings, "temperature"):
        Sampler(
            *(settings.temperature, settings.top_k, settings.top_p, settings.seed, settings.min_p),
            *(settings.repetition_penalty, settings.valid_utf8),
        )
    if isinstance(settings, TrainSettings):
        settings.callbacks.build_extra()
        run = plan(settings, keep_measurements=False)
        MemoryBudget.of(run.settings).check_least()
        model, steps = on_meta(run.settings.model), run.settings.trainer.max_steps or 1000
        assert model.flops_per_byte(settings.context_length).training > 0
        assert all(settings.optimizer.learning_rate_at(step, steps) >= 0 for step in (0, steps - 1, steps))


def assert_obeyed_or_one_sentence(schema: Any, values: dict[str, Any], base: Any = None) -> None:
    for name, changed in mutations(values):
        try:
            use(replace(base, **changed) if base else fill(schema, changed))
        except UserError as refusal:
            if not str(refusal) or "\n" in str(refusal):
                pytest.fail(f"{name}: not one sentence: {refusal}")
        except Exception as fault:
            if getattr(fault, "errno", None) != errno.ENAMETOOLONG:  # a sentence of the command line's
                pytest.fail(f"{name}: {type(fault).__name__}: {fault}")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    measured = SimpleNamespace(seconds_per_step=1.0)
    monkeypatch.setattr(autotune, "time_steps", lambda settings, steps=10: measured)


@pytest.mark.parametrize("name", [name for name in COMPOSED if name != "train"])
def test_a_mutated_setting_is_obeyed_or_answered_with_one_sentence(name):
    schema = commands.find(name).settings
    assert_obeyed_or_one_sentence(schema, composed(schema, *NEEDED.get(name, [])))


@pytest.mark.parametrize("model", MODELS)
def test_a_mutated_setting_of_train_is_obeyed_or_answered_with_one_sentence(model):
    choices = [*f"model={model}".split(), "trainer.accelerator=cpu"]
    values = composed(TrainSettings, *choices)
    if model == "small":
        return assert_obeyed_or_one_sentence(TrainSettings, values)
    base = TrainSettings.compose(*choices)
    assert_obeyed_or_one_sentence(TrainSettings, {"model": values["model"]}, base)


@pytest.mark.parametrize("name", ["report", "doctor"])
def test_a_mutated_setting_of_a_command_without_yaml(name):
    schema = commands.find(name).settings
    values = {"runs": ["a"], "form": "text", "literature": False} if name == "report" else {"json": False}
    assert_obeyed_or_one_sentence(schema, values)


@pytest.mark.parametrize(
    "typed",
    [
        *(
            "train seed=-1",
            "train seed=1e30",
            "train run_dir=",
            "train model.d_model=-1",
            "train data.windows=[a]",
        ),
        *(
            "train model.n_layer=1000000000000000000",
            "train budget.parameters=nan",
            "train data.workers=1e18",
        ),
        *("train model._target_={a:1}", "train data.source._target_=[a]", "train trainer.accelerator=tpu"),
        *(
            "train callbacks.sample_bytes=1e18",
            "train trainer.global_batch_bytes=1e18",
            "train optimizer=null",
        ),
        *("train optimizer.warmup_steps=1001", "train model.d_model=1e6", "train context_length=1024,8"),
        *(
            "eval ckpt=a stride=0",
            "eval ckpt=a metrics=[]",
            "eval ckpt=a metrics=[a]",
            "eval ckpt=a save_every=inf",
        ),
        *("generate ckpt=a top_p=2", "generate ckpt=a seed=-1", "generate ckpt=a samples=0"),
        *(
            "generate ckpt=a prompt=b stop=",
            "generate ckpt=a prompt_file=.",
            "generate ckpt=a prompt=b bytes=0",
        ),
        "compress ckpt=a file=b threads=60000",
        *("data inspect samples=-1", "data prepare data.validation_bytes=0", "export ckpt=a out={a}"),
    ],
)
def test_the_command_line_answers_with_one_sentence(typed, capfd):
    assert main(typed.split()) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("mambabyte: ") and err.count("\n") == 1
