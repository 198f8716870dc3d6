"""The README.md of an export: data, figures with their protocol, configuration, and how to use it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from mambabyte.commands import export
from mambabyte.config.settings import to_plain
from mambabyte.models import MambaByteConfig
from mambabyte.reporting.model_card import model_card


@pytest.mark.parametrize("format", ["safetensors", "mamba_ssm", "transformers"])
def test_the_card_of_a_run(format: str, finished: Path, configure, tmp_path: Path) -> None:
    export.run(configure("export", f"ckpt={finished}", f"out={tmp_path}/a", f"format={format}"))
    card = (tmp_path / "a" / "README.md").read_text()
    summary = json.loads((finished / "summary.json").read_text())
    _, header, text = card.split("---\n", 2)
    assert yaml.safe_load(header)["pipeline_tag"] == "text-generation"
    for key in ("validation", "validation_stateful"):
        assert f"{summary[key]['bits_per_byte']:.4f} on the validation split (" in text
        assert summary[key]["data_fingerprint"][:16] in text
    assert (
        f"{summary['validation']['bytes']:,} bytes in" in text and "disjoint" in text and "stateful" in text
    )
    assert "25,056 parameters" in text and "12 steps in windows of 32 bytes on files of text" in text
    assert "d_model: 32" in text and "learning_rate: 0.01" in text
    assert str(finished.parents[1]) not in card
    assert "mambabyte generate ckpt=" in text


def test_figures_of_other_weights_are_left_out(finished: Path, configure, tmp_path: Path) -> None:
    earlier = sorted((finished / "checkpoints").glob("step_*.ckpt"))[0]
    export.run(configure("export", f"ckpt={earlier}", f"out={tmp_path}/a"))
    card = (tmp_path / "a" / "README.md").read_text()
    assert "Not measured by the run" in card and "10 steps" in card


def test_a_model_of_unknown_origin() -> None:
    card = model_card(MambaByteConfig(d_model=16, n_layer=1).build(), "gguf", None, 0, None)
    assert "Not recorded in the file that was exported." in card
    assert "Not measured" in card and "library_name: llama.cpp" in card


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        (["data=stdlib"], "on the source files of Python's standard library."),
        (["data=pg19"], "on PG19, books published before 1919 (`emozilla/pg19`)."),
        (["data=wikipedia_mixture"], "on a mixture of several data sets (`en, de, zh`)."),
    ],
    ids=["the library", "PG19", "a mixture"],
)
def test_the_data_is_named_in_words(choice, words, configure) -> None:
    config = to_plain(configure("train", *choice))
    card = model_card(MambaByteConfig(d_model=16, n_layer=1).build(), "safetensors", config, 3, None)
    assert words in card and "Source" not in card.partition("## Configuration")[0]


def test_a_model_of_a_task_has_its_accuracy() -> None:
    figure = {"accuracy": 0.969, "sequence_accuracy": 0.75, "chance": 0.0625, "bits_per_byte": 0.125}
    figure |= {"bytes": 4096, "documents": 512, "precision": "fp32"}
    figure |= {"protocol": {"name": "answers", "context_length": 72, "max_bytes": None}}
    model = MambaByteConfig(d_model=16, n_layer=1).build()
    card = model_card(model, "safetensors", None, 0, {"validation": figure, "validation_stateful": None})
    assert "of which only answers are scored: 96.90 % of 4,096 answers right (guessing: 6.25 %)" in card
    assert "protocol=answers" not in card, "there is no such protocol of eval"
