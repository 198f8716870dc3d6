"""mambabyte data inspect: says what a corpus is made of."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from mambabyte.errors import UserError


def run(cfg: DictConfig) -> None:
    """Print counts, lengths, bytes and a few windows of one split, or one JSON object; write a plot.

    Raises:
        UserError: the data cannot be read, or holds no window; the plot cannot be written.
    """
    from mambabyte.data import prepare, source_from_config
    from mambabyte.data.corpus.inspection import inspect_corpus, plot_inspection
    from mambabyte.runtime.progress import Progress

    for name, least in (("context_length", 1), ("samples", 0)):
        if cfg[name] < least:
            raise UserError(f"{name} must be {least} or more, not {cfg[name]}")
    data: Any = OmegaConf.to_container(cfg.data, resolve=True)
    limit = data["validation_bytes"] if cfg.split == "validation" else None
    limit = min((size for size in (limit, cfg.max_bytes) if size is not None), default=None)
    corpus = prepare(source_from_config(data["source"]), cfg.split, Path(data["folder"]), limit)
    progress = Progress(f"inspecting {cfg.split} data", corpus.num_bytes)
    try:
        inspection = inspect_corpus(corpus, progress.show)
    finally:
        progress.close()
    plot = corpus.folder / "inspect.png" if cfg.plot is None else Path(cfg.plot)
    try:
        plot_inspection(inspection, np.diff(corpus.offsets), f"{cfg.split} data", plot)
    except (OSError, ValueError) as error:  # ValueError: a kind of picture that matplotlib does not write
        raise UserError(f"cannot write the plot {plot}: {error}; set plot=<another file.png>") from error
    samples = list(_windows(cfg, data["windows"], corpus))
    if cfg.json:
        where = {"split": cfg.split, "folder": str(corpus.folder), "plot": str(plot)}
        print(json.dumps({**where, **inspection.to_dict(), "meta": corpus.meta, "windows": samples}))
        return
    for line in _report(inspection):
        print(line)
    for number, sample in enumerate(samples):
        print(f"\nwindow {number} of {data['windows']}, seed {cfg.seed}:\n{sample}")
    print(f"\nplot: {plot}\ndata: {corpus.folder}")


def _windows(cfg: DictConfig, policy_name: str, corpus: Any) -> Any:
    """The first windows of the seed's order as text: bytes that are none stand as \\xNN."""
    from mambabyte.data.windows.policies import window_policy

    if not cfg.samples:
        return
    policy = window_policy(policy_name, corpus, cfg.context_length, cfg.seed)
    for index in range(min(cfg.samples, len(policy))):
        window = policy.window(0, index)
        scored = np.flatnonzero(window["targets"] >= 0)
        yield window["bytes"][: scored[-1] + 1].tobytes().decode("utf-8", "backslashreplace")


def _report(inspection: Any) -> list[str]:
    from mambabyte.data.corpus.inspection import ZSTD_LEVEL
    from mambabyte.runtime.units import counted

    lengths = ", ".join(f"{name} {value:,.0f}" for name, value in inspection.bytes_per_document.items())
    top = sorted(range(256), key=lambda byte: -inspection.histogram[byte])[:12]
    shares = ", ".join(f"{_shown(byte)} {inspection.histogram[byte] / inspection.bytes:.1%}" for byte in top)
    different = sum(1 for count in inspection.histogram if count)
    documents = counted(inspection.documents, "document")
    return [
        f"{documents}, {counted(inspection.bytes, 'byte')}",
        f"bytes per document: {lengths}",
        f"byte values: {different} of 256 occur, {inspection.ascii_share:.3%} of all bytes are ASCII",
        f"most frequent: {shares}",
        f"valid UTF-8: {inspection.valid_documents / inspection.documents:.2%} of the documents, "
        f"{inspection.valid_bytes / inspection.bytes:.4%} of the bytes",
        f"bits per byte: {inspection.entropy:.3f} from byte frequencies alone, "
        f"{inspection.zstd_bits_per_byte:.3f} by zstd -{ZSTD_LEVEL}",
    ]


def _shown(byte: int) -> str:
    if byte == 32:
        return "space"
    return chr(byte) if 32 < byte < 127 else {9: "\\t", 10: "\\n", 13: "\\r"}.get(byte, f"0x{byte:02X}")
