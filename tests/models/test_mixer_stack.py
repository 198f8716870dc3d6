"""Which stacks there are: what the configuration can say, and what is refused."""

import pytest
import torch

from mambabyte.config.composition import config_dir
from mambabyte.errors import UserError
from mambabyte.models import MambaByteConfig, MixerStackConfig, config_from_dict, mixers
from mambabyte.models.mixers.blocks import MambaBlock, PlainBlock
from mambabyte.models.mixers.s6 import S6
from mambabyte.training.planning.memory_estimate import num_parameters, on_meta
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
        ("model=mixer_stack mixer=mamba2 model.d_model=24", "48 inner channels, .*expand=2 times 24"),
        ("model=mamba2 model.mixer.n_groups=4", "head_dim=64 in each of model.mixer.n_groups=4"),
        ("model=hybrid model.n_layer=7", "model.layout=m3 t1 m4 has 8 layers: model.n_layer=7 is too few"),
        ("model=hybrid model.layout=t1", "has no layer m, which model.mixer is for"),
        ("model=hybrid model.layout=m1T1", "has capital letters, layers with an MLP: choose model.mlp"),
        ("model=hybrid model.mlp=gelu", "has no capital letter, a layer with an MLP: set model.mlp=none"),
        ("model=hybrid model.layout=m1w1", "a layout is letters of m, M, t, T"),
        ("model=hybrid model.n_head=5", "model.d_model=192 must be a multiple of twice model.n_head=5"),
        ("model=hybrid model.layout=m1", "model.n_head is of layers t of a model.layout"),
        ("model=mamba2 model.window=5", "model.window is of layers t of a model.layout"),
        ("model=mamba2 model.rope_base=5", "model.rope_base is of layers t of a model.layout"),
    ],
)
def test_refusals(typed, message):
    with pytest.raises(UserError, match=message.replace("[", r"\[")):
        TrainSettings.compose(*typed.split())


def test_a_layout_is_repeated_and_its_capital_letters_have_an_mlp():
    config = MixerStackConfig(
        mixers.S6Config(d_state=3), block="mamba", d_model=16, n_layer=8, layout="m2 T1M2", n_head=2, window=9
    )
    model = config.build()
    described = ""
    for layer in model.layers:
        mixer = layer.block.mixer
        if isinstance(mixer, S6):
            letter = "m"
            assert isinstance(layer.block, MambaBlock) and len(mixer.D) == 32
        else:
            letter = "t"
            assert isinstance(layer.block, PlainBlock) and mixer.width == 16
            assert (mixer.attention.heads, mixer.attention.window, mixer.rope_base) == (2, 9, 10_000)
        described += letter if layer.mlp is None else letter.upper()
    assert described == "mmTMMmmT"
    assert model.kind == "Mamba+S6 with attention"
    assert not model.recurrent and not model.resets
    assert config_from_dict(config.to_dict()) == config


def test_each_layer_of_a_layout_costs_what_it_does_alone():
    def flops(layout, layers):
        config = MixerStackConfig(
            mixers.S6Config(d_state=3), mlp="gelu", d_model=16, n_layer=layers, layout=layout
        )
        return config.build().flops_per_byte(300).inference

    head = 2 * 16 * 256
    mixer, attention = 4 * 16 * (1 + 3) + 7 * 16 * 3 + 2 * 16 * 16, 8 * 16 * 16 + 4 * 300 * 16
    mlp = 2 * 2 * 16 * 64
    assert flops("m1M1", 2) == head + 2 * mixer + mlp
    assert flops("m1M1t1", 5) == head + 4 * mixer + 2 * mlp + attention
    assert flops("m1T1", 2) == head + mixer + attention + mlp


@pytest.mark.parametrize("layers", [5, 6, 7, 8, 11, 400, 403])
def test_parameters_of_a_layout_are_counted_without_building_all(layers):
    config = MixerStackConfig(
        mixers.S6Config(d_state=3), d_model=16, n_layer=layers, layout="m2 T1m1M1", n_head=1
    )
    assert num_parameters(config) == on_meta(config).num_parameters()


def test_a_checkpoint_without_a_layout_loads():
    config = MixerStackConfig(mixers.S6Config(d_state=3), d_model=16, n_layer=2)
    description = config.to_dict()
    for name in ("layout", "n_head", "window", "rope_base"):
        del description[name]
    assert config_from_dict(description) == config


def test_a_model_chooses_its_mixer_and_another_can_be_chosen():
    of_mamba2, of_s6 = (
        TrainSettings.compose("model=hybrid", *chosen).model
        for chosen in ([], ["mixer=s6", "model.block=mamba"])
    )
    assert isinstance(of_mamba2.mixer, mixers.Mamba2Config)
    assert (of_s6.mixer, of_s6.layout) == (mixers.S6Config(), of_mamba2.layout)


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
