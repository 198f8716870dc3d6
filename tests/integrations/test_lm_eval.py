"""The adapter for lm-evaluation-harness on tasks of our own, without a download."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
import torch

from mambabyte import checkpoints
from mambabyte.data import ByteCorpus
from mambabyte.evaluation import Protocol, evaluate
from mambabyte.generation import Sampler, generate
from mambabyte.models import MambaByteConfig

lm_eval = pytest.importorskip("lm_eval", reason="needs the hf extra")

TEXTS = ["the quick brown fox jumps over the lazy dog " * 3, "čeština 🙂", "x", "a b c d e f g h"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = MambaByteConfig(d_model=16, n_layer=1, d_state=4).build()
    with torch.no_grad():
        model.lm_head.weight.mul_(10)
    path = tmp_path_factory.mktemp("harness") / "model.ckpt"
    weights = {f"model.{name}": value for name, value in model.state_dict().items()}
    ours = {"format": checkpoints.FORMAT, "model": model.config.to_dict(), "config": {"context_length": 8}}
    checkpoints.write({"mambabyte": ours, "state_dict": weights}, path)
    return path


@pytest.fixture(scope="module")
def harness(checkpoint: Path):
    from mambabyte.integrations.lm_eval import ByteHarness

    return ByteHarness(str(checkpoint), batch_size="3", device="cpu")


def request(*arguments: object) -> SimpleNamespace:
    return SimpleNamespace(args=arguments)


def test_its_bits_per_byte_are_ours(
    harness, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    task = {
        "task": "texts",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": str(tmp_path / "texts.jsonl")},
        "test_split": "train",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    }
    found = lm_eval.simple_evaluate(model=harness, tasks=[task], bootstrap_iters=0, log_samples=False)
    data = [np.frombuffer(text.encode(), np.uint8) for text in TEXTS]
    corpus = ByteCorpus(
        np.concatenate(data), np.concatenate(([0], np.cumsum([len(d) for d in data]))), list("abcd")
    )
    ours = evaluate(checkpoints.load_model(checkpoint), corpus, Protocol("disjoint", 8))
    # sums of the same float64 nats in another order
    assert found["results"]["texts"]["bits_per_byte,none"] == pytest.approx(ours.bits_per_byte, rel=1e-9)


def test_a_continuation_is_what_the_context_does_not_explain(harness) -> None:
    pairs = [("the quick", " brown"), ("a", "b"), ("", "é"), ("words and ", "x" * 30), ("context", "")]
    scores = harness.loglikelihood([request(*pair) for pair in pairs])
    wholes = harness.loglikelihood([request("", "".join(pair)) for pair in pairs])
    contexts = harness.loglikelihood([request("", pair[0]) for pair in pairs])
    for (score, _), (whole, _), (context, _) in zip(scores, wholes, contexts, strict=True):
        assert score == pytest.approx(whole - context, abs=1e-4)  # fp32 logits of padded batches
    first = harness.loglikelihood([request("", "a")])
    assert first == [(pytest.approx(-math.log(256)), False)]
    assert scores[4] == (0.0, True)


def test_the_likeliest_continuation_is_called_greedy(harness, checkpoint: Path) -> None:
    model = checkpoints.load_model(checkpoint)
    greedy = bytes(generate(model, b"the ", 6, Sampler(0)))
    text = greedy.decode("utf-8", "surrogateescape")
    other = "~" if not text.startswith("~") else "!"
    answers = harness.loglikelihood([request("the ", text), request("the ", other)])
    assert [is_greedy for _, is_greedy in answers] == [True, False]


def test_generation_ends_before_the_stopping_text(harness, checkpoint: Path) -> None:
    model = checkpoints.load_model(checkpoint)
    whole = bytes(generate(model, b"the ", 12, Sampler(0))).decode("utf-8", "replace")
    asked = {"until": [], "max_gen_toks": 12}
    assert harness.generate_until([request("the ", asked)]) == [whole]
    raw = bytes(generate(model, b"the ", 12, Sampler(0)))
    stop = next(byte for byte in raw if byte < 128)  # the model writes at least one in 12 bytes
    (text,) = harness.generate_until([request("the ", {**asked, "until": [chr(stop)]})])
    assert text == raw[: raw.index(stop)].decode("utf-8", "replace")


def test_the_device_that_the_harness_asks_for_unasked_need_not_be_there(checkpoint: Path) -> None:
    from mambabyte.integrations.lm_eval import ByteHarness

    with patch("torch.cuda.is_available", return_value=False):
        assert ByteHarness(str(checkpoint), device="cuda:0").device == torch.device("cpu")


def test_its_command_line_knows_our_models_and_explains_itself(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "qa.jsonl").write_text(json.dumps({"question": "q", "choices": ["a", "b"], "gold": 0}) + "\n")
    (tmp_path / "choice.yaml").write_text(
        "{task: choice, dataset_path: json, dataset_kwargs: {data_files: {test: qa.jsonl}}, "
        "test_split: test, output_type: multiple_choice, doc_to_text: '{{question}}', doc_to_target: gold, "
        "doc_to_choice: choices, metric_list: [{metric: acc}]}"
    )

    def run(ckpt: object) -> subprocess.CompletedProcess[str]:
        command = ["run", "--model", "mambabyte", "--model_args", f"ckpt={ckpt}", "--tasks", "choice"]
        return subprocess.run(
            [sys.executable, "-m", "mambabyte.integrations.lm_eval", *command, "--include_path", "."],
            cwd=tmp_path,
            env={**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
        )

    found = run(checkpoint)
    assert found.returncode == 0, found.stderr
    assert "|choice|" in found.stdout
    missing = run(tmp_path / "missing.ckpt")
    assert missing.returncode == 1
    assert missing.stderr.splitlines()[-1].startswith("mambabyte: there is no checkpoint at")
