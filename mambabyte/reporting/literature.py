"""The MambaByte paper's tables 2 and 3 (arXiv 2401.13660), for comparison.

The byte-level rows of other models also appear in MegaByte (arXiv 2305.07185), and MambaByte-353M's, except
for Books, in SpaceByte (arXiv 2404.14408, table 2). The Books figure, the row of MambaByte-972M and some of
table 3's subword rows, with their contexts and bytes, come from notes on the paper.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Published:
    """One row, with its figures by column; None where the paper does not say."""

    model: str
    context: str
    bytes_trained: float | None
    figures: dict[str, float | None]


def _table(columns: tuple[str, ...], *rows: tuple[Any, ...]) -> list[Published]:
    return [
        Published(model, context, trained, dict(zip(columns, figures, strict=True)))
        for model, context, trained, *figures in rows
    ]


TABLE_2 = _table(
    ("PG19", "Stories", "Books", "ArXiv", "Code"),
    ("Transformer-320M", "1,024", 80e9, 1.057, 1.064, 1.097, 0.816, 0.575),
    ("PerceiverAR-248M", "8,192", 80e9, 1.104, 1.070, 1.104, 0.791, 0.546),
    ("MegaByte-758M+262M", "8,192", 80e9, 1.000, 0.978, 1.007, 0.678, 0.411),
    ("MambaByte-353M", "8,192", 30e9, 0.930, 0.908, 0.966, 0.663, 0.396),
)
TABLE_3 = _table(
    ("validation", "test"),
    ("Transformer-XL, 36 layers (32K subwords)", "2,048/4,096", 400e9, 45.5, 36.3),
    ("Compressive, 36 layers (32K subwords)", "2,048/2x2,048", 400e9, 43.4, 33.6),
    ("Routing-490M (82K subwords)", "32,768", 330e9, None, 33.2),
    ("PerceiverAR-974.6M (32K subwords)", "8,192", 1.68e12, 45.9, 28.9),
    ("Block-Recurrent-1.3B (32K subwords)", "4,096/recurrent", None, None, 26.5),
    ("Mamba-1.03B (32K subwords)", "8,192", 150e9, 40.7, 34.6),
    ("Transformer-320M (bytes)", "8,192", 400e9, 81.6, 69.4),
    ("PerceiverAR-248M (bytes)", "8,192", 400e9, 119.1, 88.8),
    ("MegaByte-1.3B+350M (bytes)", "8,192", 400e9, 42.8, 36.4),
    ("MambaByte-972M (bytes)", "8,192", 150e9, 39.6, 33.0),
)
TITLE_2 = "Published, not measured here: test bits per byte (MambaByte, arXiv 2401.13660, table 2)"
TITLE_3 = "Published, not measured here: word perplexity on PG19 (MambaByte, arXiv 2401.13660, table 3)"
REMARKS_2 = (
    "MambaByte's test splits of Stories, ArXiv and Code are not those of the rows above it (SpaceByte, arXiv "
    "2404.14408): only PG19 compares strictly. The paper does not state how its windows were cut.",
)
REMARKS_3 = (
    "Contexts and bytes are effective ones. According to MegaByte (arXiv 2305.07185), Transformer-320M's "
    "context is 2,048, and MegaByte's own row is its sliding and strided evaluation, at four times the cost.",
)
