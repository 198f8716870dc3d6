"""mambabyte data inspect: says what a corpus is made of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from mambabyte.commands import DATA, JSON, OUT, Command
from mambabyte.config.composition import CommandSettings
from mambabyte.config.settings import setting
from mambabyte.data.settings import DataSettings
from mambabyte.errors import UserError
from mambabyte.runtime.system_errors import cannot_write
from mambabyte.runtime.valid_json import valid_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mambabyte.data import ByteCorpus
    from mambabyte.data.corpus.inspection import Inspection


@dataclass(kw_only=True)
class DataInspectSettings(CommandSettings):
    """conf/data_inspect.yaml"""

    yaml: ClassVar[str] = "data_inspect"
    split: Literal["train", "validation", "test"]
    max_bytes: int | None = setting(at_least=1, at_most=2**62)
    context_length: int = setting(at_least=1, at_most=2**30)
    samples: int = setting(at_least=0, at_most=10**6)
    seed: int = setting(at_least=0, below=2**32)
    out: Path | None
    json: bool
    data: DataSettings


def run(settings: DataInspectSettings) -> None:
    """Print counts, lengths, bytes and a few windows of one split, or one JSON object; write a plot.

    Raises:
        UserError: the data cannot be read, or holds no window; the plot cannot be written.
    """
    import numpy as np

    from mambabyte.data.corpus.inspection import inspect_corpus, plot_inspection
    from mambabyte.runtime.progress import Progress

    data, split = settings.data, settings.split
    corpus = data.prepare(split, settings.max_bytes)
    progress = Progress(f"inspecting {split} data", corpus.num_bytes)
    try:
        inspection = inspect_corpus(corpus, progress.show)
    finally:
        progress.close()
    plot = settings.out or corpus.folder / "inspect.png"
    try:
        plot_inspection(inspection, np.diff(corpus.offsets), f"{split} data", plot)
    except OSError as error:
        raise cannot_write(plot, error, "out=") from error
    except ValueError as error:  # a kind of picture that matplotlib does not write
        raise UserError(f"cannot write the plot {plot}: {error}; set out=<another file.png>") from error
    samples = list(_windows(settings, corpus))
    if settings.json:
        where = {"split": split, "folder": str(corpus.folder), "plot": str(plot)}
        print(valid_json({**where, **inspection.to_dict(), "meta": corpus.meta, "windows": samples}))
        return
    print(_extent(corpus))
    for line in _report(inspection):
        print(line)
    for number, sample in enumerate(samples):
        print(f"\nwindow {number} of {data.windows}, seed {settings.seed}:\n{sample}")
    print(f"\nplot: {plot}\ndata: {corpus.folder}")


def _windows(settings: DataInspectSettings, corpus: ByteCorpus) -> Iterator[str]:
    """The first windows of the seed's order as text; invalid UTF-8 is shown as \\xNN."""
    import numpy as np

    from mambabyte.data.windows.shuffled import ShuffledWindows

    if not settings.samples:
        return
    windows = ShuffledWindows(settings.data.windows, corpus, settings.context_length, settings.seed)
    for index in range(min(settings.samples, len(windows))):
        window = windows.window(0, index)
        scored = np.flatnonzero(window["targets"] >= 0)
        yield window["bytes"][: scored[-1] + 1].tobytes().decode("utf-8", "backslashreplace")


def _extent(corpus: ByteCorpus) -> str:
    """Which split it is and its size, and the share that is held out of the data, where one is."""
    from mambabyte.runtime.units import counted

    held_out = corpus.meta["identity"].get("validation_fraction")
    share = f"; data.validation_fraction={held_out} of the data is held out" if held_out else ""
    size = f"{counted(corpus.num_documents, 'document')}, {counted(corpus.num_bytes, 'byte')}"
    return f"the {corpus.meta['split']} split: {size}{share}"


def _report(inspection: Inspection) -> list[str]:
    from mambabyte.data.corpus.inspection import ZSTD_LEVEL

    lengths = ", ".join(f"{name} {value:,.0f}" for name, value in inspection.bytes_per_document.items())
    top = sorted(range(256), key=lambda byte: -inspection.histogram[byte])[:12]
    shares = ", ".join(f"{_shown(byte)} {inspection.histogram[byte] / inspection.bytes:.1%}" for byte in top)
    different = sum(1 for count in inspection.histogram if count)
    return [
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


COMMAND = Command(
    "describe a corpus: lengths, byte values, UTF-8: mambabyte data inspect data=stdlib",
    DataInspectSettings,
    run,
    flags=(DATA, OUT, JSON),
)
