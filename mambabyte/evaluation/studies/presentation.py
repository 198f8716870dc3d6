"""What `mambabyte eval` adds to bits per byte, each as plain values and as lines of text."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from mambabyte.data import ByteCorpus
from mambabyte.evaluation import BitsPerByte
from mambabyte.evaluation.bits_per_byte import first_documents
from mambabyte.models import ByteLM
from mambabyte.runtime.progress import progress_bar


@dataclass
class Found:
    """What is printed: as JSON, or as lines."""

    values: dict[str, Any]
    lines: list[str]


def word_perplexity(corpus: ByteCorpus, result: BitsPerByte, found: Found) -> None:
    from mambabyte.evaluation.studies.word_perplexity import measure_word_perplexity

    words = measure_word_perplexity(result.nats / result.bytes, corpus)
    found.values["word_perplexity"] = asdict(words)
    found.lines.append(f"word perplexity: {words}")


def proof(model: ByteLM, documents: Sequence[np.ndarray], result: BitsPerByte, found: Found) -> None:
    from mambabyte.coding import prove

    stateful = result.protocol["name"] == "stateful"
    window = None if stateful else result.protocol["context_length"]
    proved = prove(model, documents, result.bits_per_byte, window, progress_bar)
    found.values["proof"] = proved.to_dict()
    found.lines.append(f"proof: {proved}")


def compressors(documents: Sequence[np.ndarray], result: BitsPerByte, found: Found) -> None:
    from mambabyte.evaluation import compressor_bits_per_byte

    rivals = found.values["compressors"] = compressor_bits_per_byte(documents)
    rows = sorted({"this model": result.bits_per_byte, **rivals}.items(), key=lambda row: row[1])
    found.lines.append("bits per byte on the same bytes:")
    found.lines += [f"  {name:16}{bits:8.4f}" for name, bits in rows]


def noise(
    cfg: DictConfig,
    corpus: ByteCorpus,
    clean: BitsPerByte,
    measure: Callable[[ByteCorpus, str], BitsPerByte],
    found: Found,
) -> None:
    from mambabyte.evaluation.studies.noise import NOISES, noised
    from mambabyte.evaluation.studies.word_perplexity import count_words, perplexity

    words = count_words(first_documents(corpus, cfg.max_bytes))
    before = perplexity(clean.nats, words)
    rows = []
    for name in NOISES:
        result = measure(noised(corpus, name, cfg.max_bytes), name)
        after = perplexity(result.nats, words)
        rows.append(
            {"noise": name, "bits_per_byte": result.bits_per_byte, "bytes": result.bytes}
            | {"word_perplexity": after, "increase": after - before}
        )
    found.values["noise"] = rows
    found.lines.append(f"noise: bits per byte, and word perplexity above {before:.6g}:")
    found.lines += [f"  {row['noise']:16}{row['bits_per_byte']:8.4f}{row['increase']:+14.6g}" for row in rows]


def lengths(
    cfg: DictConfig, model: ByteLM, documents: Sequence[np.ndarray], training_length: int, found: Found
) -> None:
    from mambabyte.evaluation.studies.context_curves import measure_lengths, plot_lengths

    curves = measure_lengths(model, documents, training_length, cfg.batch_size, cfg.precision, progress_bar)
    path = Path(cfg.output_dir) / "lengths.png"
    plot_lengths(curves, f"{cfg.split}, {sum(map(len, documents)):,} bytes", path)
    found.values["lengths"] = {**curves.to_dict(), "plot": str(path)}
    found.lines.append("n, bits per byte at positions from n to 2n, and in windows of n bytes:")
    by = dict(curves.by_position), dict(curves.by_context)
    for n in sorted(by[0].keys() | by[1].keys()):
        cells = [f"{values[n]:10.4f}" if n in values else " " * 10 for values in by]
        found.lines.append(f"  {n:12,}{''.join(cells)}".rstrip())
    found.lines.append(f"plot: {path}")


def utf8(cfg: DictConfig, model: ByteLM, found: Found) -> None:
    from mambabyte.evaluation.studies.utf8_validity import utf8_validity

    validity = utf8_validity(model, cfg.samples, cfg.sample_bytes)
    found.values["utf8"] = validity.to_dict()
    found.lines.append(f"samples: {validity}")


def show(
    cfg: DictConfig, model: ByteLM, documents: Sequence[np.ndarray], result: BitsPerByte, found: Found
) -> None:
    from mambabyte.evaluation.studies.heatmap import byte_bits, characters, to_terminal, write_html

    protocol = result.protocol
    bits = byte_bits(
        model,
        documents,
        protocol["name"],
        protocol["context_length"],
        cfg.batch_size,
        cfg.precision,
        protocol.get("stride"),
    )
    texts = [characters(bytes(data), each) for data, each in zip(documents, bits, strict=True)]
    path = Path(cfg.output_dir) / "bits.html"
    write_html(texts, f"{cfg.split}: where the bits go ({protocol['name']})", path)
    found.values["shown"] = str(path)
    found.lines += [*map(to_terminal, texts), f"from white (0 bits per byte) to red (8 and more): {path}"]
