"""Other programs' folders and files, read as the model that they hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import mambabyte
from mambabyte import checkpoints
from mambabyte.checkpoints.building import model_of, shapes
from mambabyte.checkpoints.formats.state_dict import understand
from mambabyte.errors import UserError
from mambabyte.models import MambaByteConfig
from tests.checkpoints.formats.models import mamba_ssm_config, small_model, some_bytes, write_folder

LAYOUTS = [
    "pytorch_model.bin",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "model.safetensors.index.json",
]


def assert_same_model(found: Any, model: Any) -> None:
    assert found.config == model.config
    assert not found.training
    assert checkpoints.weights_fingerprint(found) == checkpoints.weights_fingerprint(model)
    x = some_bytes(65)
    assert torch.equal(found(x), model(x))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("norm", ["layer", "rms"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_a_folder_in_mamba_ssms_layout(layout: str, norm: str, tied: bool, tmp_path: Path) -> None:
    model = small_model(norm=norm, tie_embeddings=tied)
    write_folder(tmp_path / "a", model.state_dict(), mamba_ssm_config(model), layout)
    assert_same_model(mambabyte.load(tmp_path / "a"), model)
    with pytest.raises(UserError, match="with which configuration"):
        _ = checkpoints.read(tmp_path / "a").config


def test_what_the_config_leaves_open_the_weights_decide(tmp_path: Path) -> None:
    for changes in ({"norm": "layer", "expand": 3}, {"norm": "rms", "tie_embeddings": True, "d_state": 7}):
        model = small_model(**changes)
        bare = {"d_model": 24, "n_layer": 2, "vocab_size": 256}
        write_folder(tmp_path / changes["norm"], model.state_dict(), bare)
        assert_same_model(mambabyte.load(tmp_path / changes["norm"]), model)


def test_the_authors_own_files(tmp_path: Path) -> None:
    """A state dict alone, of mamba_ssm's names or their own code's, with data parallelism's prefix or not."""
    model = small_model()
    own = {"backbone.embedding.": "mambabyte.token_embedding.", "backbone.norm_f.": "mambabyte.final_norm."}

    def renamed(name: str) -> str:
        for ours, theirs in own.items():
            name = name.replace(ours, theirs)
        return name.replace("backbone.", "mambabyte.")

    for number, prefix in enumerate(("", "module.")):
        for how, name_of in (("ssm", str), ("own", renamed)):
            path = tmp_path / f"{how}{number}.pt"
            torch.save({prefix + name_of(name): tensor for name, tensor in model.state_dict().items()}, path)
            assert_same_model(mambabyte.load(path), model)


def test_a_safetensors_file_alone(tmp_path: Path) -> None:
    model = small_model(norm="rms")
    folder = write_folder(tmp_path / "a", model.state_dict(), mamba_ssm_config(model), "model.safetensors")
    with pytest.raises(UserError, match="name the folder"):
        mambabyte.load(folder / "model.safetensors")
    (folder / "config.json").unlink()
    assert_same_model(mambabyte.load(folder / "model.safetensors"), model)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_a_padded_vocabulary_is_cut_and_said_so(tied: bool, tmp_path: Path, capsys) -> None:
    model = small_model(tie_embeddings=tied)
    weights = dict(model.state_dict())
    for name in ("backbone.embedding.weight", "lm_head.weight"):
        weights[name] = torch.cat([weights[name], torch.full((8, 24), 0.5)])
    write_folder(tmp_path / "a", weights, mamba_ssm_config(model, vocab_size=257))
    assert_same_model(mambabyte.load(tmp_path / "a"), model)
    assert "has a vocabulary of 264: its first 256 symbols are taken for the bytes" in capsys.readouterr().err


def test_half_precision_becomes_float32(tmp_path: Path) -> None:
    model = small_model().to(torch.bfloat16)
    write_folder(tmp_path / "a", model.state_dict(), mamba_ssm_config(model))
    assert_same_model(mambabyte.load(tmp_path / "a"), model.float())
    double = small_model().double()
    write_folder(tmp_path / "b", double.state_dict(), mamba_ssm_config(double))
    assert_same_model(mambabyte.load(tmp_path / "b"), double)


def test_parameters_keep_their_marks_and_can_be_trained(tmp_path: Path) -> None:
    model = small_model(tie_embeddings=True)
    write_folder(tmp_path / "a", model.state_dict(), mamba_ssm_config(model), "model.safetensors")
    before = (tmp_path / "a" / "model.safetensors").read_bytes()
    loaded = mambabyte.load(tmp_path / "a")
    assert loaded.lm_head.weight is loaded.backbone.embedding.weight
    for ours, theirs in zip(model.parameters(), loaded.parameters(), strict=True):
        assert vars(ours) == vars(theirs) and theirs.requires_grad and not theirs.is_meta
    loaded(some_bytes(9)).sum().backward()
    torch.optim.SGD(loaded.parameters(), lr=1.0).step()
    assert not torch.equal(loaded.lm_head.weight, model.lm_head.weight)
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == before  # memory is copied when written to


def test_a_strangers_strides_and_nans(tmp_path: Path) -> None:
    model = small_model(norm="rms", tie_embeddings=True)
    weights = dict(model.state_dict())
    weights["backbone.embedding.weight"][7, 3] = float("nan")
    weights["backbone.layers.0.mixer.in_proj.weight"] = (
        model.backbone.layers[0].mixer.in_proj.weight.T.clone().T
    )
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.json").write_text('{"d_model": 24, "n_layer": 2}')
    torch.save(weights, tmp_path / "a" / "pytorch_model.bin")
    loaded = mambabyte.load(tmp_path / "a")
    assert loaded.config.tie_embeddings
    assert all(parameter.is_contiguous() and parameter.is_leaf for parameter in loaded.parameters())
    assert checkpoints.weights_fingerprint(loaded) == checkpoints.weights_fingerprint(model)


def without(name: str) -> Callable:
    return lambda weights, config: weights.pop(name)


def renamed(old: str, new: str) -> Callable:
    return lambda weights, config: weights.update({new: weights.pop(old)})


def reshaped(name: str, shape: tuple[int, ...]) -> Callable:
    return lambda weights, config: weights.update({name: torch.zeros(shape)})


def configured(**changes: Any) -> Callable:
    return lambda weights, config: config.update(changes)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (without("backbone.layers.1.mixer.D"), r"missing is backbone\.layers\.1\.mixer\.D"),
        (
            renamed("backbone.norm_f.weight", "a\nb"),
            r"missing is backbone\.norm_f\.weight; not of this model is a",
        ),
        (renamed("backbone.embedding.weight", "embedding"), r"no backbone\.embedding\.weight"),
        (
            reshaped("backbone.layers.1.mlp.fc1.weight", (1,)),
            r"not of this model is backbone\.layers\.1\.mlp\.fc1",
        ),
        (lambda weights, config: config.pop("n_layer"), "is neither mambabyte's"),
        (reshaped("backbone.layers.9.norm.weight", (24,)), "n_layer=2, and its weights .* n_layer=3"),
        (reshaped("backbone.layers.1.norm.weight", (25,)), r"norm\.weight is \(25,\) and should be \(24,\)"),
        (reshaped("backbone.layers.0.mixer.in_proj.weight", (97, 24)), "no multiple of its width 24"),
        (reshaped("backbone.embedding.weight", (50280, 24)), "a vocabulary of 50,280"),
        (reshaped("backbone.embedding.weight", (255, 24)), "a vocabulary of 255"),
        (reshaped("backbone.embedding.weight", (256, 0)), "is damaged"),
        (configured(d_model=48), "d_model=48, and its weights are of a model with d_model=24"),
        (configured(n_layer=10**9), "n_layer=1000000000, and its weights"),
        (configured(vocab_size=50277), "vocab_size=50277, and its weights have 256 symbols"),
        (configured(vocab_size=255), "vocab_size=255, and"),
        (configured(vocab_size="256"), "vocab_size='256', and"),
        (configured(model_type="mamba", layer_norm_epsilon="x" * 10**5), "layer_norm_epsilon='x"),
        (configured(rms_norm=True), "rms_norm=True, and its weights are of a model with rms_norm=False"),
        (configured(tie_embeddings=True), "tie_embeddings=True, and its weights"),
        (configured(ssm_cfg={"layer": "Mamba2"}), "layer='Mamba2', which mambabyte has not"),
        (configured(ssm_cfg={"conv_bias": False}), "conv_bias=False, which mambabyte has not"),
        (configured(ssm_cfg=[1]), "ssm_cfg is no section"),
        (configured(attn_layer_idx=[1]), r"attn_layer_idx=\[1\], which mambabyte has not"),
        (configured(d_intermediate=5), "d_intermediate=5, which mambabyte has not"),
        (configured(window=5), "has 'window', which mamba_ssm does not know"),
        (configured(model_type="mamba2"), "a model of type 'mamba2'"),
        (configured(model_type=["mamba"]), "a model of type"),
        (configured(model_type="mamba", use_bias=True), "use_bias=True, which mambabyte has not"),
        (configured(ssm_cfg={"d_state": 7}), r"says ssm_cfg\.d_state=7, and its .* with ssm_cfg\.d_state="),
        (
            configured(model_type="mamba", tie_word_embeddings=False, hidden_size=5),
            "says hidden_size=5, and its .* with hidden_size=24",
        ),
        (
            configured(model_type="mamba", tie_word_embeddings=False, num_hidden_layers=5),
            "says num_hidden_layers=5, and its",
        ),
        (
            configured(model_type="mamba", tie_word_embeddings=False),
            "have norms with a bias, and its config is of a layout that has RMSNorms alone",
        ),
    ],
)
def test_what_does_not_fit_is_one_sentence(change: Callable, sentence: str, tmp_path: Path) -> None:
    model = small_model()
    weights, config = dict(model.state_dict()), mamba_ssm_config(model)
    change(weights, config)
    write_folder(tmp_path / "a", weights, config)
    with pytest.raises(UserError, match=sentence) as caught:
        mambabyte.load(tmp_path / "a")
    assert "\n" not in str(caught.value)


def test_norms_without_bias_that_are_no_rms_norm_are_refused(tmp_path: Path) -> None:
    model = small_model(norm="rms")
    write_folder(tmp_path / "a", model.state_dict(), mamba_ssm_config(model, rms_norm=False))
    with pytest.raises(UserError, match="rms_norm=False, and its weights are of a model with rms_norm=True"):
        mambabyte.load(tmp_path / "a")
    double = {**model.state_dict(), "backbone.embeddings.weight": model.backbone.embedding.weight.detach()}
    write_folder(tmp_path / "b", double, mamba_ssm_config(model))
    with pytest.raises(UserError, match="twice"):
        mambabyte.load(tmp_path / "b")
    quantised = {**model.state_dict(), "lm_head.weight": torch.zeros(256, 24, dtype=torch.int8)}
    write_folder(tmp_path / "c", quantised, mamba_ssm_config(model))
    with pytest.raises(UserError, match=r"as torch\.int8"):
        mambabyte.load(tmp_path / "c")


def test_a_tied_model_with_two_heads_is_refused(tmp_path: Path) -> None:
    model = small_model(tie_embeddings=True)
    mambabyte.save(model, tmp_path / "a")
    weights = {**model.state_dict(), "lm_head.weight": torch.zeros(256, 24)}
    from safetensors.torch import save_file

    save_file(weights, tmp_path / "a" / "model.safetensors")
    with pytest.raises(UserError, match="do not fit the model"):
        mambabyte.load(tmp_path / "a")


@pytest.mark.parametrize(
    ("width", "layers", "parameters"),
    [(1024, 53, 353_945_600), (1792, 48, 973_934_080), (2304, 48, 1_606_095_360)],
    ids=["353M", "972M", "1.6B"],
)
def test_the_published_models(width: int, layers: int, parameters: int) -> None:
    """A state dict of their names and shapes, in memory that is never touched, is a model of their count."""
    config = MambaByteConfig(d_model=width, n_layer=layers)
    weights = {name: torch.empty(shape) for name, shape in shapes(config).items()}
    weights["backbone.embedding.weight"].fill_(0)
    weights["lm_head.weight"].fill_(1)
    found, named = understand(weights, {"d_model": width}, "published")
    assert found == config
    assert model_of(found, named).num_parameters() == parameters
