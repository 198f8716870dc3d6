"""GGUF: read back by the gguf package, and run by llama.cpp where that is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mambabyte import checkpoints
from mambabyte.commands import export
from mambabyte.errors import UserError
from mambabyte.generation import Sampler, generate
from mambabyte.models import ByteLM, MambaByteConfig, TransformerConfig
from tests.checkpoints.formats.models import small_model, some_bytes

gguf = pytest.importorskip("gguf", reason="needs the exchange extra")


def write(model: ByteLM, folder: Path) -> Path:
    checkpoints.write_export(model, None, 0, folder, "gguf")
    return folder / "model.gguf"


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def model(request: pytest.FixtureRequest) -> ByteLM:
    return small_model(norm="rms", tie_embeddings=request.param, norm_epsilon=1e-4, d_conv=4)


def values(reader: Any) -> dict[str, Any]:
    return {name: field.contents() for name, field in reader.fields.items()}


def test_the_hyperparameters_and_the_weights(model: ByteLM, tmp_path: Path) -> None:
    reader, config = gguf.GGUFReader(write(model, tmp_path / "a")), model.config
    found = values(reader)
    assert found["general.architecture"] == "mamba"
    described = {
        "block_count": 2, "embedding_length": 24, "feed_forward_length": 0, "attention.head_count": 0,
        "ssm.conv_kernel": 4, "ssm.inner_size": 48, "ssm.state_size": 5, "ssm.time_step_rank": 3,
        "ssm.dt_b_c_rms": False, "context_length": 1 << 20,
    }  # fmt: skip
    assert {key: found[f"mamba.{key}"] for key in described} == described
    assert found["mamba.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-4)
    tensors = {tensor.name: torch.from_numpy(np.array(tensor.data)) for tensor in reader.tensors}
    assert ("output.weight" in tensors) != config.tie_embeddings
    weights = model.state_dict()
    expected = {
        "token_embd.weight": "backbone.embedding.weight",
        "output_norm.weight": "backbone.norm_f.weight",
    }
    expected |= {} if config.tie_embeddings else {"output.weight": "lm_head.weight"}
    names = {
        "attn_norm.weight": "norm.weight", "ssm_in.weight": "mixer.in_proj.weight",
        "ssm_conv1d.bias": "mixer.conv1d.bias", "ssm_x.weight": "mixer.x_proj.weight",
        "ssm_dt.weight": "mixer.dt_proj.weight", "ssm_dt.bias": "mixer.dt_proj.bias", "ssm_d": "mixer.D",
        "ssm_out.weight": "mixer.out_proj.weight",
    }  # fmt: skip
    expected |= {
        f"blk.{n}.{theirs}": f"backbone.layers.{n}.{ours}" for n in (0, 1) for theirs, ours in names.items()
    }
    for theirs, ours in expected.items():
        assert torch.equal(tensors.pop(theirs), weights[ours]), theirs
    for layer in (0, 1):
        mixer = f"backbone.layers.{layer}.mixer"
        assert torch.equal(tensors.pop(f"blk.{layer}.ssm_a"), -torch.exp(weights[f"{mixer}.A_log"]))
        assert torch.equal(
            tensors.pop(f"blk.{layer}.ssm_conv1d.weight"), weights[f"{mixer}.conv1d.weight"][:, 0]
        )
    assert tensors == {}


def test_the_vocabulary_is_the_bytes(model: ByteLM, tmp_path: Path) -> None:
    found = values(gguf.GGUFReader(write(model, tmp_path / "a")))
    tokens = found["tokenizer.ggml.tokens"]
    assert found["tokenizer.ggml.model"] == "gpt2"
    assert len(set(tokens)) == len(tokens) == 256
    assert [tokens[byte] for byte in b"A~0"] == list("A~0")
    assert tokens[ord(" ")] == "\u0120" and tokens[ord("\n")] == "\u010a"  # as in every GPT-2 vocabulary
    assert found["tokenizer.ggml.token_type"] == [gguf.TokenType.NORMAL] * 256
    (merge,) = found["tokenizer.ggml.merges"]
    assert not set(merge.split(" ")) & set(tokens)
    assert {found[f"tokenizer.ggml.{mark}_token_id"] for mark in ("bos", "eos")} == {255}
    assert not found["tokenizer.ggml.add_bos_token"] and not found["tokenizer.ggml.add_eos_token"]


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (MambaByteConfig(d_model=16, n_layer=1), "no LayerNorm with bias: .* train with model.norm=rms"),
        (MambaByteConfig(d_model=16, n_layer=1, norm="rms", ngram=2), "no n-gram embeddings"),
        (MambaByteConfig(d_model=16, n_layer=1, norm="rms", expand=3), "has expand=2 alone, and .* expand=3"),
        (
            TransformerConfig(d_model=16, n_layer=1, n_head=2),
            "holds MambaByte models, and this one is Transformer",
        ),
    ],
    ids=["layer norm", "n-grams", "expand", "another model"],
)
def test_what_it_cannot_hold_is_refused_before_anything_is_written(
    config, sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=sentence):
        write(config.build(), tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_float64_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="float64"):
        write(small_model(norm="rms").double(), tmp_path / "a")


def test_llama_cpp_computes_the_same(model: ByteLM, tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="needs llama-cpp-python")
    path = str(write(model, tmp_path / "a"))
    theirs = llama_cpp.Llama(path, n_ctx=1024, logits_all=True, verbose=False, n_threads=1)
    text = "Hello ünï 漢字 don 't\r\n\t."
    for data in (text.encode(), b"\x00"):
        assert theirs.tokenize(data, add_bos=True, special=True) == list(data)
        assert theirs.detokenize(list(data)) == data
    for length in (1, 65, 1000):
        x = some_bytes(length)
        theirs.reset()
        theirs.eval(x[0].tolist())
        with torch.no_grad():
            difference = torch.from_numpy(np.array(theirs.scores[:length])) - model(x)[0]
        assert difference.abs().max() < 1e-3, length
    prompt = b"Once upon a time"
    theirs.reset()
    greedy = [
        token
        for token, _ in zip(theirs.generate(list(prompt), temp=0.0, reset=True), range(40), strict=False)
    ]
    assert bytes(greedy) == bytes(generate(model, prompt, 40, Sampler(0.0)))


def test_the_command_writes_one(finished: Path, configure, tmp_path: Path) -> None:
    export.run(configure("export", f"ckpt={finished}", f"out={tmp_path}/a", "format=gguf"))
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"model.gguf", "README.md"}
