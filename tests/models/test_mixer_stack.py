"""Which stacks there are: what the configuration can say, and what is refused."""

import pytest
import torch

from mambabyte.config.composition import config_dir
from mambabyte.errors import UserError
from mambabyte.models import MambaByteConfig, MixerStackConfig, config_from_dict, mixers
from mambabyte.training.settings import TrainSettings

NAMES = sorted(path.stem for path in (config_dir() / "mixer").glob("*.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_a_word_chooses_the_mixer_of_every_block_and_a_checkpoint_names_it(name):
    for block in ("plain", "h3", "mamba"):
        settings = TrainSettings.compose("model=mixer_stack", f"mixer={name}", f"model.block={block}")
        config = settings.model
        assert isinstance(config, MixerStackConfig)
        assert mixers.MIXERS[type(config.mixer).__name__.removesuffix("Config")] == name
        assert config_from_dict(config.to_dict()) == config
        model = MixerStackConfig(config.mixer, block, d_model=32, n_layer=1).build()
        around = {"plain": "", "h3": "H3+", "mamba": "Mamba+"}[block]
        assert model.kind == around + type(config.mixer).__name__.removesuffix("Config")
        assert model.flops_per_byte(100).inference > 2 * model.num_parameters() - 2000


def test_every_mixer_has_a_yaml():
    assert sorted(mixers.MIXERS.values()) == NAMES


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("mixer=s6", "mixer= chooses the mixer of model=mixer_stack, and this model is MambaByte"),
        ("model=mixer_stack", "model.mixer is a section that mixer=NAME fills, of attention, "),
        ("model=mixer_stack mixer=s7", "there is no mixer 's7'"),
        ("model=mixer_stack mixer=[s6,ssd]", "mixer takes one choice"),
        ("model=mixer_stack mixer=s6 model.mixer.n_head=2", "no setting model.mixer.n_head"),
        ("model=mixer_stack mixer=attention model.mixer.n_head=5", "twice model.mixer.n_head=5"),
        ("model=mixer_stack mixer=linear_attention model.mixer.n_head=5", "multiple of model.mixer.n_head=5"),
        ("model=mixer_stack mixer=s6 model.mixer.dt_min=1", "model.mixer.dt_min and dt_max"),
        ("model=mixer_stack mixer=s6 model.expand=3", "block=plain has no expand"),
        ("model=mixer_stack mixer=s6 model.d_conv=3", "block=plain has no d_conv"),
        ("model=mixer_stack mixer=s6 model.mlp=none model.d_ff=8", "mlp=none has no d_ff"),
        ("model=mixer_stack mixer=mamba3 model.d_model=24", "Mamba-3's 48 inner channels, .*=2 times 24"),
        ("model=mixer_stack mixer=mamba3 model.mixer.d_state=3", "d_state=3 states is less than one pair"),
    ],
)
def test_refusals(typed, message):
    with pytest.raises(UserError, match=message.replace("[", r"\[")):
        TrainSettings.compose(*typed.split())


@pytest.mark.parametrize("target", ["mambabyte.models.MambaByteConfig", "os.path", "antigravity.Config"])
def test_a_checkpoint_cannot_name_what_is_no_mixer_of_ours(target):
    description = MixerStackConfig(mixers.S6Config(), d_model=8).to_dict()
    description["mixer"]["_target_"] = target
    with pytest.raises(UserError, match=f"mixer._target_={target} is no mixer"):
        config_from_dict(description)


def test_mambas_block_around_s6_is_mamba():
    """The same parameters under other names, the norms included, give the same logits."""
    torch.manual_seed(0)
    mamba = MambaByteConfig(d_model=16, n_layer=2, d_state=4, norm="rms", tie_embeddings=True).build()
    stack = MixerStackConfig(
        mixers.S6Config(d_state=4), block="mamba", mlp="none", d_model=16, n_layer=2
    ).build()
    ours = {"embedding.weight": "backbone.embedding.weight", "norm.weight": "backbone.norm_f.weight"}
    for layer in (0, 1):
        there, here = f"backbone.layers.{layer}", f"layers.{layer}"
        ours[f"{here}.norm.weight"] = f"{there}.norm.weight"
        for part in ("in_proj.weight", "conv1d.weight", "conv1d.bias", "out_proj.weight"):
            ours[f"{here}.block.{part}"] = f"{there}.mixer.{part}"
        for part in ("x_proj.weight", "dt_proj.weight", "dt_proj.bias", "A_log", "D"):
            ours[f"{here}.block.mixer.{part}"] = f"{there}.mixer.{part}"
    weights = mamba.state_dict()
    stack.load_state_dict({mine: weights[theirs] for mine, theirs in ours.items()} | {
        "lm_head.weight": weights["lm_head.weight"]
    })  # fmt: skip
    assert stack.num_parameters() == mamba.num_parameters()
    assert stack.flops_per_byte(99) == mamba.flops_per_byte(99)
    bytes = torch.randint(0, 256, (2, 37))
    assert torch.allclose(stack(bytes), mamba(bytes), atol=1e-6)  # the gate is outside of the scan here
