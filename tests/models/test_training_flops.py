"""What a step with frozen weights or adapters costs, against PyTorch's counter of matrix products."""

from fnmatch import fnmatchcase

import pytest
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mambabyte.models import MambaByteConfig, MegaByteConfig, MixerStackConfig, mixers
from mambabyte.models.hyperparameters import LoraSettings
from mambabyte.models.lora import add_adapters
from mambabyte.models.training_flops import training_flops_per_byte
from tests.models.every_model import MODELS, random_bytes

LENGTH = 560  # whole blocks of Perceiver AR and patches of MegaByte


def counted(config, lora=None, freeze=()):
    """Operations per byte of a forward and a backward pass, as PyTorch counts them."""
    model = config.build()
    if lora is not None:
        add_adapters(model, lora)
    for name, parameter in model.named_parameters():
        if any(fnmatchcase(name, pattern) for pattern in freeze):
            parameter.requires_grad_(False)
    # in its plain form PyTorch's attention is matrix products, which the counter knows on every device
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(random_bytes(1, LENGTH)).float().sum().backward()
    return counter.get_total_flops() / LENGTH


@pytest.mark.parametrize(
    "freeze",
    [
        ["*norm*"],
        ["lm_head.*"],
        ["*.layers.0.*"],
        ["*embedding*"],
        ["*embedding*", "*layers.0.*"],
        ["*embedding*", "*layers.*"],
        ["*.up.*", "*.qkv.*", "*.taps.*"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("name", ["transformer-untied", "perceiver_ar", "cnn"])
def test_frozen_weights_need_no_gradients(name, freeze):
    if name == "transformer-untied":
        config = MODELS["transformer"].__class__(d_model=32, n_layer=3, n_head=2, tie_embeddings=False)
    else:
        config = MODELS[name]
    ours = training_flops_per_byte(config, LENGTH, freeze=freeze)
    assert ours == pytest.approx(counted(config, freeze=freeze), rel=1e-9)


@pytest.mark.parametrize(
    "freeze",
    [["*embedding*", "layers.0.*"], ["*embedding*", "layers.1.*"], ["*embedding*", "layers.*", "norm.*"]],
    ids=" ".join,
)
def test_of_a_hybrid_each_layer_costs_its_own(freeze):
    config = MixerStackConfig(
        mixers.CNNConfig(kernel_size=2, dilation=2), mlp="gelu", d_model=16, n_layer=2, layout="M1 t1",
        n_head=2, tie_embeddings=False,
    )  # fmt: skip
    ours = training_flops_per_byte(config, LENGTH, freeze=freeze)
    assert ours == pytest.approx(counted(config, freeze=freeze), rel=1e-9)


def test_nothing_frozen_is_three_times_inference():
    for config in MODELS.values():
        flops = config.build().flops_per_byte(LENGTH)
        assert training_flops_per_byte(config, LENGTH) == flops.training
        assert training_flops_per_byte(config, LENGTH, freeze=["no such weight"]) == pytest.approx(
            flops.training
        )


@pytest.mark.parametrize("name", MODELS)
def test_frozen_weights_cost_between_inference_and_training(name):
    flops = MODELS[name].build().flops_per_byte(LENGTH)
    frozen = training_flops_per_byte(MODELS[name], LENGTH, freeze=["*.weight", "*.lstm.*", "lstm.*"])
    assert flops.inference <= frozen < flops.training


def test_megabytes_global_model_works_once_a_patch():
    config = MegaByteConfig(patch_size=4, max_length=1100, d_model=64, n_head=2, local_d_model=16, n_layer=2)
    weights = sum(
        p.numel() for n, p in config.build().named_parameters() if "global_stack" in n and p.ndim > 1
    )
    saved = config.build().flops_per_byte(LENGTH).training - training_flops_per_byte(
        config, LENGTH, freeze=["global_stack.*"]
    )
    assert saved == pytest.approx(2 * weights / 4)


SCAN, CONVOLUTION = 7 * 64 * 4, 2 * 64 * 4  # per byte and layer, forward: the counter sees neither


@pytest.mark.parametrize(
    ("targets", "unseen"),
    [
        (["in_proj", "x_proj", "dt_proj", "out_proj"], 2 * (3 * SCAN + 2 * CONVOLUTION)),
        # below the adapter, that is in the first layer and the second's convolution, nothing goes backward
        (["layers.1.mixer.x_proj"], 2 * (SCAN + CONVOLUTION) + 2 * SCAN),
    ],
    ids=["every layer", "one layer"],
)
def test_adapters(targets, unseen, monkeypatch):
    pytest.importorskip("peft")
    monkeypatch.setenv("MAMBABYTE_BACKEND", "reference")
    lora, config = (
        LoraSettings(rank=3, alpha=6, targets=targets),
        MambaByteConfig(d_model=32, n_layer=2, d_state=4),
    )
    assert training_flops_per_byte(config, LENGTH, lora) == pytest.approx(counted(config, lora) + unseen)
