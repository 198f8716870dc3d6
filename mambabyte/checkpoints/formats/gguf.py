"""GGUF, llama.cpp's format: architecture ``mamba``, float32, and a vocabulary of the 256 bytes.

The vocabulary is GPT-2's alphabet in the order of the bytes, under a tokenizer that splits and never merges:
left alone, llama.cpp's converter takes GPT-NeoX's tokens, and llama.cpp takes byte 11 for the marks of the
beginning and the end. It wants a merge, so there is one of characters that stand for no byte, and a mark of
the end, so that is byte 255, which no UTF-8 text contains.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mambabyte.checkpoints.formats.byte_tokenizer import alphabet
from mambabyte.checkpoints.formats.transformers import require_rms_mamba
from mambabyte.errors import UserError
from mambabyte.models import ByteLM, MambaByteConfig

if TYPE_CHECKING:
    from gguf import GGUFWriter

FILE = "model.gguf"
_NO_MERGE = "\u4e00 \u4e01"  # neither is in the alphabet
_NEVER_IN_TEXT = 255
_SPLITTING = "qwen2"  # of llama.cpp's ways to split text, one that leaves spaces alone when it writes text
_CONTEXT = 1 << 20  # bytes; a recurrent model has no limit, and llama.cpp wants a number
# Our names in a block, and llama.cpp's.
_BLOCK = {
    "norm.weight": "attn_norm.weight", "mixer.in_proj.weight": "ssm_in.weight",
    "mixer.conv1d.weight": "ssm_conv1d.weight", "mixer.conv1d.bias": "ssm_conv1d.bias",
    "mixer.x_proj.weight": "ssm_x.weight", "mixer.dt_proj.weight": "ssm_dt.weight",
    "mixer.dt_proj.bias": "ssm_dt.bias", "mixer.A_log": "ssm_a", "mixer.D": "ssm_d",
    "mixer.out_proj.weight": "ssm_out.weight",
}  # fmt: skip


def check(model: ByteLM) -> None:
    """Raise UserError if the format cannot hold the model, or the gguf package is missing."""
    config = require_rms_mamba(model, "gguf", "llama.cpp's mamba")
    if config.expand != 2:
        raise UserError(f"llama.cpp's mamba has expand=2 alone, and this model has expand={config.expand}")
    if any(parameter.dtype != torch.float32 for parameter in model.parameters()):
        raise UserError("llama.cpp computes in float32, and this model holds float64 weights")
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise UserError("format=gguf needs the gguf package: pip install 'mambabyte[exchange]'") from error


def write(model: ByteLM, folder: Path) -> None:
    """Write model.gguf into ``folder``; the model passed :func:`check`."""
    from gguf import GGUFWriter

    writer = GGUFWriter(folder / FILE, "mamba", use_temp_file=False)
    try:
        _add_hyperparameters(writer, model.config)  # type: ignore[arg-type]
        _add_vocabulary(writer)
        for name, tensor in _tensors(model):
            writer.add_tensor(name, tensor.detach().cpu().contiguous().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _add_hyperparameters(writer: GGUFWriter, config: MambaByteConfig) -> None:
    import gguf

    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_name("MambaByte")
    writer.add_context_length(_CONTEXT)
    writer.add_embedding_length(config.d_model)
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_block_count(config.n_layer)
    writer.add_ssm_conv_kernel(config.d_conv)
    writer.add_ssm_inner_size(config.d_inner)
    writer.add_ssm_state_size(config.d_state)
    writer.add_ssm_time_step_rank(config.time_step_rank)
    writer.add_layer_norm_rms_eps(config.norm_epsilon)
    writer.add_ssm_dt_b_c_rms(False)


def _add_vocabulary(writer: GGUFWriter) -> None:
    import gguf

    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_SPLITTING)
    writer.add_token_list(alphabet())
    writer.add_token_types([gguf.TokenType.NORMAL] * len(alphabet()))
    writer.add_token_merges([_NO_MERGE])
    writer.add_bos_token_id(_NEVER_IN_TEXT)
    writer.add_eos_token_id(_NEVER_IN_TEXT)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)


def _tensors(model: ByteLM) -> list[tuple[str, Tensor]]:
    weights, config = model.state_dict(), model.config
    assert isinstance(config, MambaByteConfig)
    tensors = [
        ("token_embd.weight", weights["backbone.embedding.weight"]),
        ("output_norm.weight", weights["backbone.norm_f.weight"]),
    ]
    if not config.tie_embeddings:  # without, llama.cpp takes the embedding's
        tensors.append(("output.weight", weights["lm_head.weight"]))
    for layer in range(config.n_layer):
        for ours, theirs in _BLOCK.items():
            tensor = weights[f"backbone.layers.{layer}.{ours}"]
            if ours == "mixer.A_log":
                tensor = -torch.exp(tensor)
            elif ours == "mixer.conv1d.weight":
                tensor = tensor.squeeze(1)
            tensors.append((f"blk.{layer}.{theirs}", tensor))
    return tensors
