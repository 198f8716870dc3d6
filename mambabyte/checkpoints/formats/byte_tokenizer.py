"""A tokenizer of bytes for transformers and llama.cpp: 256 tokens, whose ids are their bytes, none special.

Both write a byte as one printable character, in GPT-2's alphabet.
"""

from __future__ import annotations

from typing import Any


def alphabet() -> list[str]:
    """The character that stands for each byte, in the order of the bytes: itself where Latin-1 prints it, and
    where it does not, the next one from U+0100 on."""
    printed = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in printed)
    stand_ins = {byte: chr(0x100 + place) for place, byte in enumerate(others)}
    return [stand_ins.get(byte, chr(byte)) for byte in range(256)]


def files() -> dict[str, Any]:
    """The content of ``tokenizer.json`` and ``tokenizer_config.json``.

    No text is taken for a special token, nothing is added, normalised, merged or cleaned up: the ids of a
    text are its UTF-8 bytes. Decoding writes U+FFFD for what is no UTF-8, as
    ``bytes.decode("utf-8", "replace")`` does.
    """
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    tokenizer: dict[str, Any] = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": byte_level, "post_processor": None, "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": {character: byte for byte, character in enumerate(alphabet())}, "merges": [],
        },
    }  # fmt: skip
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "bos_token": None, "eos_token": None, "unk_token": None, "pad_token": None,
    }  # fmt: skip
    return {"tokenizer.json": tokenizer, "tokenizer_config.json": config}
