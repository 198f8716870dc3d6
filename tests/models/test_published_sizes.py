"""The models in the papers' sizes, built without memory: parameters and compute against what was
published."""

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from mambabyte.config.composition import config_dir
from mambabyte.models import config_from_dict


def build(choice):
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = compose("train", [f"model={choice}"])
    with torch.device("meta"):
        return config_from_dict(OmegaConf.to_container(cfg.model)).build()


@pytest.mark.parametrize(
    ("choice", "parameters", "published"),
    [
        ("transformer_320m", 320_648_192, 320e6),
        ("transformer_361m", 361_161_728, 361e6),
        ("perceiver_ar_248m", 247_865_344, 248e6),
        ("gated_s4d_368m", 367_921_152, 368e6),
    ],
)
def test_parameters(choice, parameters, published):
    model = build(choice)
    assert model.num_parameters() == parameters
    assert parameters == pytest.approx(published, abs=0.7e6)


def test_mamba2_in_h_nets_size_l():
    """arXiv 2507.07955, table 2, which rounds parameters to ten million and the FLOPs to 0.42e9. They fit 28
    layers of Mamba-2 without MLPs: with them there would be more than 400 million parameters."""
    model = build("mamba2_190m")
    assert model.num_parameters() == 185_354_880
    assert round(model.num_parameters(), -7) == 190e6
    assert model.flops_per_byte(8192).inference == pytest.approx(0.42e9, rel=0.02)


@pytest.mark.parametrize(
    ("choice", "parameters", "published", "bytes_per_chunk", "flops"),
    [  # H-Net (arXiv 2507.07955): its bytes per innermost chunk are 4.7 to 7.0, the outer ones not reported
        ("hnet_1stage_l", 679_405_312, 680e6, [4.8], 0.43e9),
        ("hnet_2stage_l", 874_315_264, 870e6, [2.65, 7.0], 0.43e9),
        ("hnet_1stage_xl", 1_270_833_920, 1.3e9, [4.8], 0.72e9),
        ("hnet_2stage_xl", 1_603_492_224, 1.6e9, [2.65, 7.0], 0.69e9),
    ],
)
def test_hnets(choice, parameters, published, bytes_per_chunk, flops):
    model = build(choice)
    assert model.num_parameters() == parameters
    assert parameters == pytest.approx(published, rel=0.025)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    # as mamba_ssm's Mamba2(1024, d_state=128) has them: z, x, B, C and dt of 32 heads
    assert shapes["backbone.encoder.layers.3.mixer.in_proj.weight"] == (2 * 2048 + 2 * 128 + 32, 1024)
    assert shapes["backbone.encoder.layers.3.mixer.conv1d.weight"] == (2048 + 2 * 128, 1, 4)
    rates = [1 / size for size in bytes_per_chunk]
    assert model.flops_per_byte(8192, rates).inference == pytest.approx(flops, rel=0.03)


@pytest.mark.parametrize(
    ("choice", "published"),
    [
        ("megabyte_758m_262m", (758e6, 262e6)),
        ("megabyte_1_3b_350m", (1300e6, 350e6)),
        ("megabyte_193m_177m_p8", (193e6, 177e6)),
        ("megabyte_193m_177m_p4", (193e6, 177e6)),
    ],
)
def test_parameters_of_megabytes_two_models(choice, published):
    model = build(choice)
    counts = {"global": 0, "local": 0}
    for name, parameter in model.named_parameters():
        counts["global" if name.startswith("global") else "local"] += parameter.numel()
    assert sum(counts.values()) == model.num_parameters()
    assert counts["global"] == pytest.approx(published[0], rel=0.01)
    assert counts["local"] == pytest.approx(published[1], rel=0.01)


def test_parameters_of_spacebytes_blocks():
    """The paper's name counts blocks alone."""
    counts = {"global": 0, "initial": 0, "final": 0}
    for name, parameter in build("spacebyte_793m_184m").named_parameters():
        kind, _, rest = name.partition("_blocks.")
        if rest:
            counts[kind] += parameter.numel()
    assert counts == {"global": 792_813_056, "initial": 92_034_176, "final": 92_034_176}
    assert counts["global"] == pytest.approx(793e6, abs=0.5e6)
    assert counts["initial"] + counts["final"] == pytest.approx(184e6, abs=0.5e6)
    # and the embeddings of 256 bytes, 8,192 positions and the 4,097 patches that they can open, and the head
    assert build("spacebyte_793m_184m").num_parameters() == 989_859_840


@pytest.mark.parametrize(
    ("choice", "context_length", "published"),
    [  # SpaceByte (arXiv 2404.14408), table 4
        ("mambabyte_353m", 8192, 713e6),
        ("megabyte_758m_262m", 8192, 729e6),
        ("transformer_320m", 1024, 732e6),
        ("spacebyte_793m_184m", 8192, 728e6),
    ],
)
def test_flops_per_byte(choice, context_length, published):
    assert build(choice).flops_per_byte(context_length).inference == pytest.approx(published, rel=0.005)


@pytest.mark.parametrize(
    ("megabyte", "mambabyte", "published"),
    [  # MambaByte (arXiv 2401.13660), table 1
        ("megabyte_758m_262m", "mambabyte_353m", 1.02),
        ("megabyte_1_3b_350m", "mambabyte_972m", 0.54),
    ],
)
def test_ratios_of_training_compute(megabyte, mambabyte, published):
    ratio = build(megabyte).flops_per_byte(8192).training / build(mambabyte).flops_per_byte(8192).training
    assert ratio == pytest.approx(published, abs=0.01)
