"""The MambaByte authors' models on the hub. Their files do not say how they were trained; the paper does."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PublishedModel:
    """A model of the paper (arXiv 2401.13660).

    context_length: bytes of its training windows.
    data: the file of conf/data with what it was trained on; None if that is not public as it was used.
    figure: what the paper reports for the test split of that data.
    """

    context_length: int = 8192
    data: str | None = None
    figure: str | None = None


PUBLISHED = {
    "JunxiongWang/MambaByte_PG19_353M": PublishedModel(
        data="pg19", figure="0.930 bits per byte (MambaByte-353M, table 2)"
    ),
    "JunxiongWang/MambaByte_PG19_972M": PublishedModel(
        data="pg19", figure="a word perplexity of 33.0 (MambaByte-972M, table 3)"
    ),
    # Their own splits of the Pile's parts.
    **{f"JunxiongWang/MambaByte_{name}": PublishedModel() for name in ("Code", "Stories", "Arxiv", "Books")},
}
