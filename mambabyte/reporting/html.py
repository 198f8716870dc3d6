"""The report as one HTML page that needs no other file."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape

from mambabyte.reporting.tables import Table

_STYLE = (
    "body{font-family:sans-serif;margin:1em auto;max-width:70em;padding:0 1em;background:#fff;color:#111;"
    "overflow-wrap:anywhere}"
    "table{border-collapse:collapse;font-size:.9em}div{overflow-x:auto}"
    "th,td{padding:.3em .6em;border-bottom:1px solid #ddd;text-align:right;white-space:nowrap}"
    "th{border-bottom:2px solid #888;white-space:normal;overflow-wrap:normal;vertical-align:bottom}"
    "h2{font-size:1.05em;margin:2em 0 .6em}"
    ".words{text-align:left;white-space:normal;min-width:8em}"
    "img{width:45em;max-width:100%;height:auto}.note{color:#555;max-width:50em}"
)


def to_html(tables: Sequence[Table], notes: Sequence[str], figures: Mapping[str, bytes]) -> str:
    """The page: ``notes``, ``tables`` and ``figures`` (PNGs by title)."""
    body = [f"<p class=note>{escape(note)}</p>" for note in notes]
    for table in tables:
        rows = "\n".join([_row(table, table.header, "th"), *(_row(table, row, "td") for row in table.rows)])
        body += [f"<h2>{escape(table.title)}</h2>", f"<div><table>{rows}</table></div>"]
        body += [f"<p class=note>{escape(remark)}</p>" for remark in table.remarks]
    for title, image in figures.items():
        source = f"data:image/png;base64,{b64encode(image).decode('ascii')}"
        body.append(f"<p><img alt='{escape(title)}' src='{source}'>")
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width,initial-scale=1'><title>mambabyte report</title>"
        f"<style>{_STYLE}</style><h1>mambabyte report</h1>\n" + "\n".join(body) + "\n</html>\n"
    )


def _row(table: Table, cells: Sequence[str], tag: str) -> str:
    kinds = [" class=words" if title in table.words else "" for title in table.header]
    row = [f"<{tag}{kind}>{escape(cell)}</{tag}>" for cell, kind in zip(cells, kinds, strict=True)]
    return f"<tr>{''.join(row)}</tr>"
