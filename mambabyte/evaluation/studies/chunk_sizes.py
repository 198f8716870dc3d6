"""How many bytes the chunks of a model have on a corpus, and what a byte costs with them."""

import math
from collections.abc import Sequence
from itertools import groupby

import numpy as np
import torch

from mambabyte.evaluation.protocols import Protocol
from mambabyte.evaluation.studies import Study
from mambabyte.models import ByteLM
from mambabyte.models.byte_lm import ReadsChunks
from mambabyte.runtime.units import counted, short_count

SAMPLE_BYTES = 65_536


def chunk_study(model: ByteLM, documents: Sequence[np.ndarray], protocol: Protocol) -> Study | None:
    """None of a model whose layers all run for each byte.

    The figures are of about 65,536 bytes, or all if there are fewer, in windows of ``context_length`` bytes
    that lie evenly over the documents, each read from a fresh state.
    """
    if not isinstance(model, ReadsChunks):
        return None
    length = protocol.context_length
    windows = [document[at : at + length] for document in documents for at in range(0, len(document), length)]
    total = sum(map(len, documents))
    chosen = min(len(windows), max(1, math.ceil(len(windows) * SAMPLE_BYTES / total)))
    places = (2 * np.arange(chosen) + 1) * len(windows) // (2 * chosen)
    chunks, bytes_read = np.zeros(0), 0
    with torch.autocast(model.device.type, torch.bfloat16, enabled=protocol.precision == "bf16"):
        for _, alike in groupby(sorted((windows[i] for i in places), key=len), key=len):
            same = list(alike)
            for first in range(0, len(same), protocol.batch_size):
                batch = np.stack(same[first : first + protocol.batch_size])
                rates = model.chunk_rates(torch.from_numpy(batch).to(model.device))
                chunks = batch.size * np.array(rates) + (chunks if bytes_read else 0)
                bytes_read += batch.size
    rates = (chunks / bytes_read).tolist()
    if not rates:
        return None
    sizes = [1 / rate if rate else None for rate in rates]
    measured, expected = (model.flops_per_byte(length, at).inference for at in (rates, None))
    values = {
        "bytes_per_chunk": sizes,
        "flops_per_byte": measured,
        "expected_flops_per_byte": expected,
        "context_length": length,
        "bytes": bytes_read,
    }
    named = f"{', '.join('no' if size is None else f'{size:.2f}' for size in sizes)} bytes"
    if len(sizes) > 1:
        named += " from the outermost stage to the innermost"
    line = (
        f"chunks: {named}; {short_count(measured, 'FLOP')} a byte in inference, and "
        f"{short_count(expected, 'FLOP')} at the expected size "
        f"({counted(bytes_read, 'byte')} of {total:,}, in windows of {length:,})"
    )
    return Study(values, [line])
