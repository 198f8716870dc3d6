"""Numbers as people read them."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

GIB = 2**30
_TIMES = ((86400, "d"), (3600, "h"), (60, "m"), (1, "s"))
_PREFIXES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def counted(number: int, noun: str) -> str:
    """ "1 document", "2,000 documents"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def duration(seconds: float) -> str:
    """Two units of time: "3 m 20 s", "5 h 12 m", "2 d 3 h"."""
    seconds = round(seconds)
    for (size, unit), (smaller, smaller_unit) in pairwise(_TIMES):
        if seconds >= size:
            return f"{seconds // size} {unit} {seconds % size // smaller} {smaller_unit}"
    return f"{seconds} s"


def byte_count(value: float, of: float | None = None) -> str:
    """One decimal and a decimal prefix: "14.2 kB"; with ``of``, both in the unit of ``of``: "1.2/7.4 MB"."""
    largest = value if of is None else of
    scale, prefix = next((row for row in _PREFIXES if row[0] <= largest), (1.0, ""))
    digits = 1 if prefix else 0
    total = "" if of is None else f"/{of / scale:.{digits}f}"
    return f"{value / scale:.{digits}f}{total} {prefix}B"


def short_count(number: float, unit: str = "") -> str:
    """Three digits and a decimal prefix: "1.75M"; with ``unit``: "1.75 MFLOP"."""
    scale, prefix = next((row for row in _PREFIXES if row[0] <= number), (1.0, ""))
    return f"{float(f'{number / scale:.3g}'):g}{' ' if unit else ''}{prefix}{unit}"


def accuracy_in_words(figure: Mapping[str, Any]) -> str:
    """What a model answered to a task: "96.90 % of 4,096 answers right (guessing: 7.14 %), ..."."""
    return (
        f"{_percent(figure['accuracy'])} of {counted(figure['bytes'], 'answer')} right (guessing: "
        f"{_percent(figure['chance'])}), all of them in {_percent(figure['sequence_accuracy'])} of "
        f"{counted(figure['documents'], 'sequence')} of {figure['protocol']['context_length']:,} bytes; "
        f"{figure['bits_per_byte']:.4f} bits per answer, {figure['precision']}"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def protocol_in_words(protocol: Mapping[str, Any]) -> str:
    """An evaluation protocol in words: "sliding, context 1,024 bytes, stride 512"."""
    stride = f", stride {protocol['stride']:,}" if "stride" in protocol else ""
    return f"{protocol['name']}, context {protocol['context_length']:,} bytes{stride}"
