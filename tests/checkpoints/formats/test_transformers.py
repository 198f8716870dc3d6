"""Against transformers: its MambaForCausalLM computes what MambaByte does, from our folders and into them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import mambabyte
from mambabyte import checkpoints
from mambabyte.commands import export
from mambabyte.errors import UserError
from mambabyte.models import MambaByteConfig, TransformerConfig
from tests.checkpoints.formats.models import LENGTHS, mamba_ssm_config, small_model, some_bytes, write_folder

transformers = pytest.importorskip("transformers", reason="needs the exchange extra")
TOLERANCE = 1e-4  # of logits: both compute in float32, in another order

TEXT = "Hello <|endoftext|> <s></s> [PAD] \r\n\t  don 't , a . ünï 漢字 \U0001f389\x00\x0b \u2028 \ufffd  "


@torch.no_grad()
def assert_equal_logits(theirs: Any, ours: Any) -> None:
    for length in LENGTHS:
        x = some_bytes(length)
        difference = theirs.eval()(x).logits - ours(x)
        assert difference.abs().max() < TOLERANCE, length


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_both_ways(tied: bool, tmp_path: Path) -> None:
    model = small_model(norm="rms", tie_embeddings=tied, norm_epsilon=1e-4, expand=3 if tied else 2)
    checkpoints.write_export(model, None, 0, tmp_path / "ours", "transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert type(theirs).__name__ == "MambaForCausalLM"
    assert_equal_logits(theirs, model)
    for folder, size in (("whole", "1GB"), ("sharded", "20kB")):
        theirs.save_pretrained(tmp_path / folder, max_shard_size=size)
        again = mambabyte.load(tmp_path / folder)
        assert again.config == model.config
        assert checkpoints.weights_fingerprint(again) == checkpoints.weights_fingerprint(model)
    assert (tmp_path / "sharded" / "model.safetensors.index.json").is_file()


def test_a_model_that_began_there(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.MambaConfig(vocab_size=256, hidden_size=32, num_hidden_layers=2, state_size=4)
    theirs = transformers.MambaForCausalLM(config)
    theirs.save_pretrained(tmp_path / "theirs")
    assert_equal_logits(theirs, mambabyte.load(tmp_path / "theirs"))


def test_it_reads_what_mamba_ssm_reads(tmp_path: Path) -> None:
    """transformers takes the weights of the file that mamba_ssm would load, one name changed."""
    model = small_model(norm="rms")
    checkpoints.write_export(model, None, 0, tmp_path / "a", "mamba_ssm")
    assert json.loads((tmp_path / "a" / "config.json").read_text()) == mamba_ssm_config(model)
    weights = torch.load(tmp_path / "a" / "pytorch_model.bin", weights_only=True)
    assert {name: tensor.shape for name, tensor in weights.items()} == {
        name: tensor.shape for name, tensor in model.state_dict().items()
    }
    checkpoints.write_export(model, None, 0, tmp_path / "b", "transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "b")
    weights["backbone.embeddings.weight"] = weights.pop("backbone.embedding.weight")
    theirs.load_state_dict(weights)
    assert_equal_logits(theirs, model)


def test_a_trained_run_exported_by_the_command(finished: Path, configure, tmp_path: Path) -> None:
    for format in ("transformers", "mamba_ssm", "safetensors"):
        export.run(configure("export", f"ckpt={finished}", f"out={tmp_path}/{format}", f"format={format}"))
    ours = mambabyte.load(finished)
    assert_equal_logits(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "transformers"), ours)
    prints = {
        checkpoints.weights_fingerprint(mambabyte.load(tmp_path / f)) for f in ("transformers", "mamba_ssm")
    }
    assert prints == {checkpoints.weights_fingerprint(ours)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "a"
    checkpoints.write_export(small_model(norm="rms"), None, 0, folder, "transformers")
    return folder


def test_the_tokenizers_ids_are_bytes(folder: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    assert len(tokenizer) == tokenizer.vocab_size == 256
    assert tokenizer.all_special_tokens == []
    for special in (True, False):
        ids = tokenizer(TEXT, add_special_tokens=special)["input_ids"]
        assert ids == list(TEXT.encode())
        assert tokenizer.decode(ids, skip_special_tokens=special) == TEXT
    assert tokenizer("")["input_ids"] == []
    for byte in range(256):
        assert tokenizer.convert_tokens_to_ids(tokenizer.convert_ids_to_tokens(byte)) == byte


def test_any_byte_string_survives(folder: Path) -> None:
    """As ids and as tokens. Text has no place for what is no UTF-8: it becomes what Python makes of it."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for seed in range(20):
        data = bytes(some_bytes(200, seed)[0].tolist())
        tokens = tokenizer.convert_ids_to_tokens(list(data))
        assert bytes(tokenizer.convert_tokens_to_ids(tokens)) == data
        assert tokenizer.decode(list(data)) == data.decode("utf-8", "replace")


def test_the_pipeline_generates(folder: Path) -> None:
    generate = transformers.pipeline("text-generation", model=str(folder), device="cpu")
    (answer,) = generate("Once ", max_new_tokens=12, do_sample=False, return_full_text=False)
    ours = mambabyte.generate(mambabyte.load(folder), b"Once ", bytes=12, temperature=0)
    assert answer["generated_text"] == ours.decode("utf-8", "replace")


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (MambaByteConfig(d_model=16, n_layer=1), "no LayerNorm with bias: .* train with model.norm=rms"),
        (MambaByteConfig(d_model=16, n_layer=1, norm="rms", ngram=2), "no n-gram embeddings"),
        (
            TransformerConfig(d_model=16, n_layer=1, n_head=2),
            "holds MambaByte models, and this one is Transformer",
        ),
    ],
    ids=["layer norm", "n-grams", "another model"],
)
def test_what_it_cannot_hold_is_refused_before_anything_is_written(
    config, sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=sentence):
        checkpoints.write_export(config.build(), None, 0, tmp_path / "a", "transformers")
    assert list(tmp_path.iterdir()) == []


def test_a_layer_norm_in_its_layout_is_refused(tmp_path: Path) -> None:
    model = small_model(norm="layer")
    config = {"model_type": "mamba", "hidden_size": 24, "tie_word_embeddings": False}
    write_folder(tmp_path / "a", model.state_dict(), config)
    with pytest.raises(
        UserError, match="have norms with a bias, and its config is of a layout that has RMSNorms alone"
    ):
        mambabyte.load(tmp_path / "a")
