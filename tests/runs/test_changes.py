"""What counts as a change of a run's settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from mambabyte.config.settings import fill, to_plain
from mambabyte.errors import UserError
from mambabyte.runs.changes import changes, in_words, refuse_other_run, refuse_recorded_run
from mambabyte.training.settings import SettingsButModel, TrainSettings


@pytest.fixture
def settings() -> TrainSettings:
    return TrainSettings.compose("experiment=tiny", "data=files", "data.path=/texts")


def without(plain: dict[str, Any], *path: str) -> dict[str, Any]:
    *sections, name = path
    inner = plain
    for section in sections:
        inner = inner[section]
    del inner[name]
    return plain


def test_the_same_settings_have_not_changed(settings: TrainSettings) -> None:
    assert changes(to_plain(settings), settings) == {}


@pytest.mark.parametrize(
    "path",
    [
        ("callbacks", "log_every"),
        ("trainer", "spike_threshold"),
        ("trainer", "gradient_clip"),
        ("optimizer", "weight_decay"),
        ("optimizer", "_target_"),
        ("model", "norm_epsilon"),
        ("data", "source", "text_column"),
        ("data", "windows"),
        ("budget",),
        ("json",),
    ],
)
def test_what_an_earlier_version_did_not_record_had_its_default(path, settings: TrainSettings) -> None:
    settings.data.windows = "random_per_document"  # the default, and not what this experiment sets
    assert changes(without(to_plain(settings), *path), settings) == {}


def test_a_new_setting_that_is_not_its_default_has_changed(settings: TrainSettings) -> None:
    recorded = without(to_plain(settings), "trainer", "gradient_clip")
    settings.trainer.gradient_clip = 0.5
    assert changes(recorded, settings) == {"trainer.gradient_clip": (1.0, 0.5)}


def test_what_this_version_no_longer_has_is_no_change(settings: TrainSettings) -> None:
    recorded = to_plain(settings)
    recorded["trainer"]["once"] = recorded["callbacks"]["validation_bytes"] = 1
    assert changes(recorded, settings) == {}


def test_the_arguments_of_ones_own_source_are_compared_as_they_are(settings: TrainSettings) -> None:
    settings.data.source = {"_target_": "my_package.Source", "argument": 1}
    recorded = to_plain(settings)
    settings.data.source = {"_target_": "my_package.Source", "another": 2}
    assert changes(recorded, settings) == {
        "data.source.another": (None, 2),
        "data.source.argument": (1, None),
    }


def test_a_record_of_wrong_types_is_refused_in_a_sentence(settings: TrainSettings, tmp_path) -> None:
    recorded = {**to_plain(settings), "trainer": None, "optimizer": 3}
    with pytest.raises(UserError, match=r"optimizer \(3 there") as caught:
        refuse_other_run(tmp_path, changes(recorded, settings))
    assert "\n" not in str(caught.value)


def test_an_old_name_is_no_change(settings: TrainSettings) -> None:
    recorded = to_plain(settings)
    recorded["callbacks"]["validation_bytes"] = recorded["callbacks"].pop("validate_bytes")
    recorded["logger"] = {"service": "csv", "project": None, "entity": None}
    assert changes(recorded, settings) == {}
    recorded["logger"] = {"service": "wandb", "project": None, "entity": None}
    assert changes(recorded, settings) == {"logger.wandb": (True, False)}


def record(run_dir: Path, recorded: Any) -> Path:
    """A run that has a checkpoint."""
    (run_dir / "checkpoints").mkdir(exist_ok=True)
    (run_dir / "checkpoints" / "step_00000001.ckpt").touch()
    (run_dir / "config.yaml").write_text(yaml.safe_dump(recorded))
    return run_dir


def compare(run_dir: Path, settings: TrainSettings, model: dict[str, Any]) -> None:
    """As the command line does, before the model's class is imported."""
    refuse_recorded_run(run_dir, fill(SettingsButModel, without(to_plain(settings), "model")), model)


def test_the_record_of_an_earlier_version_is_read_as_today(settings: TrainSettings, tmp_path: Path) -> None:
    recorded = without(to_plain(settings), "optimizer", "_target_")
    recorded["callbacks"]["validation_bytes"] = recorded["callbacks"].pop("validate_bytes")
    recorded["model"]["once"] = 1
    record(tmp_path, without(recorded, "model", "tie_embeddings"))
    model = to_plain(settings.model)
    compare(tmp_path, settings, model)
    with pytest.raises(UserError, match=r"model\.d_model \(64 there, 32 now\); give"):
        compare(tmp_path, settings, {**model, "d_model": 32})
    settings.optimizer.weight_decay = 0.5
    with pytest.raises(UserError, match=r"optimizer\.weight_decay \(0\.1 there, 0\.5 now\); give"):
        compare(tmp_path, settings, model)


def test_what_only_the_checkpoint_can_tell_is_left_to_it(settings: TrainSettings, tmp_path: Path) -> None:
    recorded, model = to_plain(settings), to_plain(settings.model)
    compare(record(tmp_path, recorded), settings, {"_target_": "mine.Config", "d_model": 1})
    settings.budget.parameters = 1e5
    compare(tmp_path, settings, {**model, "d_model": 32})
    settings.seed = 1
    for damaged in ([], "text", {**recorded, "data": None}):
        compare(record(tmp_path, damaged), settings, model)
    (tmp_path / "config.yaml").write_bytes(b"\xff\n\t: [")
    compare(tmp_path, settings, model)
    (tmp_path / "config.yaml").unlink()
    compare(tmp_path, settings, model)


def test_a_run_without_a_checkpoint_keeps_nothing(settings: TrainSettings, tmp_path: Path) -> None:
    record(tmp_path, to_plain(settings))
    settings.seed = 1
    with pytest.raises(UserError, match=r"seed \(0 there, 1 now\)"):
        compare(tmp_path, settings, to_plain(settings.model))
    (tmp_path / "checkpoints" / "step_00000001.ckpt").unlink()
    compare(tmp_path, settings, to_plain(settings.model))


def test_changes_are_written_as_in_yaml() -> None:
    changed = {"a": (None, ["packed"]), "b": ("text", True), "c": ((0.9, 1.0), 3)}
    said = "a (null then, [packed] now), b (text then, true now), c ([0.9, 1.0] then, 3 now)"
    assert in_words(changed, "then") == said


def test_the_order_of_patterns_and_targets_means_nothing() -> None:
    def of(*overrides: str) -> TrainSettings:
        return TrainSettings.compose("ckpt=runs/given", *overrides)

    frozen, adapted = of("freeze=[a.*,b.*]"), of("lora=default", "lora.targets=[x_proj,in_proj]")
    assert changes(to_plain(frozen), of("freeze=[b.*,a.*]")) == {}
    assert changes(to_plain(frozen), of("freeze=[b.*]")) == {"freeze": (["a.*", "b.*"], ["b.*"])}
    assert changes(to_plain(adapted), of("lora=default", "lora.targets=[in_proj,x_proj]")) == {}
    assert list(changes(to_plain(adapted), of("lora=default", "lora.targets=[in_proj]"))) == ["lora.targets"]
