"""A small configuration of every model."""

from functools import partial

import torch

from mambabyte.models import (
    CNNConfig,
    GatedS4DConfig,
    HNetConfig,
    LSTMConfig,
    MambaByteConfig,
    MegaByteConfig,
    MixerStackConfig,
    PerceiverARConfig,
    SpaceByteConfig,
    TransformerConfig,
    mixers,
)
from mambabyte.models.hnet_layers import RoutingModule


def mixer_stack(mixer, **settings):
    return MixerStackConfig(mixer=mixer, d_model=16, n_layer=2, **settings)


SPACEBYTE = {
    "max_length": 1100, "d_model": 32, "n_layer": 1, "n_head": 2, "local_d_model": 16, "local_n_layer": 2,
    "local_n_head": 1, "local_window": 9, "initializer_scale": 0.5,
}  # fmt: skip
MODELS = {
    "mambabyte": MambaByteConfig(d_model=32, n_layer=2, d_state=4),
    "mambabyte-ngrams": MambaByteConfig(
        d_model=32, n_layer=2, d_state=4, ngram=4, ngram_buckets=64, ngram_width=6
    ),
    "transformer": TransformerConfig(d_model=32, n_layer=2, n_head=2),
    "transformer-window": TransformerConfig(d_model=32, n_layer=2, n_head=2, window=5, tie_embeddings=False),
    "megabyte": MegaByteConfig(
        patch_size=4, max_length=1100, d_model=32, n_head=2, local_d_model=16, local_n_head=2, n_layer=2
    ),
    "megabyte-patch-of-1": MegaByteConfig(
        patch_size=1, max_length=1100, d_model=16, n_head=2, local_d_model=16, local_n_head=1, n_layer=1
    ),
    "perceiver_ar": PerceiverARConfig(n_latents=7, d_model=32, n_layer=3, n_head=2),
    "spacebyte": SpaceByteConfig(**SPACEBYTE),
    "spacebyte-fixed": SpaceByteConfig(**SPACEBYTE, patching="fixed", bytes_per_chunk=3),
    "gated_s4d": GatedS4DConfig(d_model=32, n_layer=2, d_state=8),
    "lstm": LSTMConfig(d_model=32, n_layer=2),
    "cnn": CNNConfig(d_model=32, n_layer=3, kernel_size=3, dilation_cycle=2),
    "hnet": HNetConfig(
        arch_layout=["m1", ["T1"], "t1"],
        d_model=[16, 24],
        d_intermediate=[0, 32],
        ssm_cfg={"d_state": 4, "headdim": 8, "chunk_size": 8},
        attn_cfg={"num_heads": [2, 2], "rotary_emb_dim": [4, 6], "window_size": [6, -1]},
        bytes_per_chunk=[3],
    ),
    "hnet-2-stages": HNetConfig(
        arch_layout=["t1", ["m1", ["T1"], "t1"], "m1"],
        d_model=[16, 16, 24],
        d_intermediate=[0, 0, 32],
        ssm_cfg={"d_state": 4, "headdim": 8, "chunk_size": 8},
        attn_cfg={"num_heads": [2, 2, 2], "rotary_emb_dim": [4, 8, 6], "window_size": [6, 3, -1]},
        bytes_per_chunk=[2, 4],
    ),
    "mamba-s6": mixer_stack(mixers.S6Config(d_state=4), block="mamba", mlp="none"),
    "h3-s6": mixer_stack(mixers.S6Config(d_state=4), block="h3", mlp="none"),
    "linear_attention": mixer_stack(mixers.LinearAttentionConfig(n_head=2), mlp="gelu"),
    "ssd": mixer_stack(mixers.SSDConfig(d_state=4, n_head=2, chunk=8)),
    "attention": mixer_stack(mixers.AttentionConfig(n_head=2)),
    "s4": mixer_stack(mixers.S4Config(d_state=4)),
    "s4d": mixer_stack(mixers.S4DConfig(d_state=4, init="legs")),
    "mamba-s4d-real": mixer_stack(mixers.S4DConfig(d_state=4, init="real"), block="mamba"),
    "h3": mixer_stack(mixers.H3Config(d_state=4), mlp="none"),
    "mamba2": mixer_stack(mixers.Mamba2Config(d_state=4, head_dim=8, n_groups=2, chunk=8), mlp="none"),
    "mamba3": mixer_stack(mixers.Mamba3Config(d_state=8, head_dim=8, n_groups=2, chunk=8), mlp="none"),
    "hybrid": mixer_stack(
        mixers.Mamba2Config(d_state=4, head_dim=8, chunk=8), mlp="gelu", layout="m1 T1", n_head=2
    ),
    "hybrid-window": mixer_stack(
        mixers.S6Config(d_state=4), block="mamba", mlp="none", layout="t1 m1", n_head=2, window=5
    ),
    "rwkv": mixer_stack(mixers.RWKVConfig(), mlp="rwkv"),
    "lstm-mixer": mixer_stack(mixers.LSTMConfig(), mlp="none"),
    "cnn-mixer": mixer_stack(mixers.CNNConfig(kernel_size=2, dilation=2), mlp="none"),
}


def chunks_by_position(model):
    """Let every second position of an H-Net's stage begin a chunk, whatever its router says: what it decides
    is a jump, which no tolerance of a lower precision covers."""
    for module in model.modules():
        if isinstance(module, RoutingModule):
            module.forward = partial(_begun_by_position, module.forward)


def _begun_by_position(forward, x, last, read):
    positions = torch.arange(x.shape[1]) + (0 if read is None else read.unsqueeze(1))
    return forward(x, last, read)[0], (positions % 2 == 0).expand(x.shape[:2])


def random_bytes(*shape, seed=1):
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed))
