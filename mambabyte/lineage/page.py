"""The modules as one HTML page that needs no other file.

A module's docstring and the comments between its functions are the text, in Markdown; the rest is code. An
indented line is a formula, with ^{} and _{} for raised and lowered letters. `![caption](name)` is a figure,
and lines after `>>>` are an example with its output, which is run.
"""

from __future__ import annotations

import ast
import doctest
import inspect
import re
import textwrap
from base64 import b64encode
from collections.abc import Callable, Iterator
from html import escape
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from mambabyte.errors import UserError
from mambabyte.lineage import figures
from mambabyte.lineage.identities import IDENTITIES

if TYPE_CHECKING:
    from mambabyte.models import MambaByte

PARTS = ("ssm", "hippo", "s4", "selection", "block")
MINUS = "\N{MINUS SIGN}"
_LETTER = r"(?:[^\W\d_][\u0303\u0304]?)"  # with a line or a tilde above it, if there is one
_INTRODUCTION = """
From the linear state space to the block that MambaByte stacks: each equation is followed by the lines that
compute it, and each part ends with an identity that was checked when this page was built. The text is the
source of `mambabyte/lineage`, and `mambabyte lineage` builds the page from it.
"""
_MEASURED = """
When this page was built, in float64:

"""
_STYLE = """
body{font:17px/1.55 Georgia,'DejaVu Serif',serif;color:#1a1a1a;background:#fff;margin:0 auto;max-width:56rem;
  padding:2rem 1.2rem 6rem}
p,ul,figcaption{max-width:43rem}
h1{font-size:2rem;line-height:1.2;margin:1rem 0}
h2{font-size:1.5rem;margin:4rem 0 1rem;padding-top:1.2rem;border-top:1px solid #ccc}
h3{font-size:1.12rem;margin:2.4rem 0 .6rem}
a{color:#0b5394}
code,pre{font:12.6px/1.5 ui-monospace,'DejaVu Sans Mono',Menlo,Consolas,monospace}
code{font-size:.84em;background:#f2f2ee;padding:.1em .25em}
pre code{font-size:1em;padding:0;background:none}
pre{padding:.8rem 1rem;overflow-x:auto;margin:1rem 0;background:#f7f7f4;border-left:3px solid #d5d5cc}
pre.example{background:#eef4fa;border-left-color:#a9c4de}
.formula{margin:1.1rem 0;padding-left:2rem;overflow-x:auto;white-space:pre;font-size:1.06em;line-height:1.75}
.formula i{padding-right:.04em}
sub,sup{font-size:.72em;line-height:0}
figure{margin:1.8rem 0}img{max-width:100%;height:auto}
figcaption p{margin:.4rem 0}
summary{font-size:.88em;color:#555;cursor:pointer}
figcaption,.note{font-size:.88em;line-height:1.45;color:#555}
nav{font-size:.95em;margin:1.5rem 0}
table{border-collapse:collapse;font-size:.9em;margin:1.2rem 0}td,th{padding:.3em .8em .3em 0;text-align:left;
  border-bottom:1px solid #ddd;vertical-align:top}
"""


class Page(NamedTuple):
    html: str
    figures: dict[str, bytes]  # PNGs by name


def build(model: MambaByte | None, records: Path) -> Page:
    """The page, after its examples were run and its identities measured.

    Args:
        model: whose step sizes are drawn; without one, a sentence stands in the figure's place.
        records: the folder with the CSV files of `figures.RECORDED`; what is not there is left out.

    Raises:
        UserError: a package is missing that only this page needs, or a CSV file cannot be drawn.
    """
    images: dict[str, bytes] = {}

    def figure(name: str, caption: str) -> str:
        drawn = figures.draw(name, model, records)
        if not isinstance(drawn, bytes):
            return _markdown(drawn)
        images[name] = drawn
        return _figure(drawn, caption)

    modules = [import_module(f"mambabyte.lineage.{name}") for name in PARTS]
    for module in modules:
        run_examples(module)
    titles = [title(module) for module in modules]
    contents = " · ".join(f"<a href='#{name}'>{escape(t)}</a>" for name, t in zip(PARTS, titles, strict=True))
    body = ["<h1>From state spaces to Mamba</h1>", _markdown(_INTRODUCTION), f"<nav>{contents}</nav>"]
    for name, module, heading in zip(PARTS, modules, titles, strict=True):
        body.append(f"<h2 id='{name}'>{escape(heading)}</h2>")
        for kind, text in cells(module):
            body.append(_prose(text, figure) if kind == "text" else _code(text))
    body += ["<h2 id='identities'>What was measured</h2>", _markdown(_MEASURED + table())]
    return Page(
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width,initial-scale=1'>"
        f"<title>From state spaces to Mamba</title><style>{_STYLE}{_colors()}</style>\n"
        + "\n".join(body)
        + "\n</html>\n",
        images,
    )


def table() -> str:
    """The identities, measured, as a table in Markdown."""
    rows = ["| system | module | identity | largest difference |", "|---|---|---|---|"]
    for identity in IDENTITIES:
        difference = f"{identity.difference():.1e}"
        rows.append(f"| {identity.system} | `{identity.module}.py` | {identity.claim} | {difference} |")
    return "\n".join(rows)


def title(module: ModuleType) -> str:
    return (module.__doc__ or "").splitlines()[0]


def cells(module: ModuleType) -> Iterator[tuple[str, str]]:
    """("text" or "code", lines) of a module, in their order; the title is left out."""
    source = inspect.getsource(module)
    yield "text", (module.__doc__ or "").partition("\n")[2]
    after = ast.parse(source).body[0].end_lineno
    lines: list[str] = []
    kind = "code"
    for line in [*source.splitlines()[after:], "#", ""]:  # ends with a change of kind
        now = "text" if line.startswith("#") else "code"
        if now != kind:
            if any(lines):
                yield kind, "\n".join(lines).strip("\n")
            lines, kind = [], now
        lines.append(line.removeprefix("#").removeprefix(" "))


def run_examples(module: ModuleType) -> None:
    """Run the text's examples in the module's names.

    Raises:
        AssertionError: one has not the output that stands there.
    """
    text = "\n\n".join(text for kind, text in cells(module) if kind == "text")
    test = doctest.DocTestParser().get_doctest(text, dict(vars(module)), module.__name__, None, None)
    report: list[str] = []
    doctest.DocTestRunner().run(test, out=report.append)
    assert not report, "".join(report)


def _prose(text: str, figure: Callable[[str, str], str]) -> str:
    """HTML of text, block by block; `figure` takes a figure's name and caption."""
    return "\n".join(_block(block, figure) for block in re.split(r"\n\n+", text.strip("\n")))


def _block(block: str, figure: Callable[[str, str], str]) -> str:
    found = re.fullmatch(r"!\[(.*)\]\((\w+)\)", block, re.DOTALL)
    if found:
        return figure(found[2], " ".join(found[1].split()))
    if block.startswith(">>> "):
        return f"<pre class=example>{_highlighted(block, 'pycon')}</pre>"
    if block.startswith("    "):
        return f"<div class=formula>{formula(textwrap.dedent(block))}</div>"
    return _markdown(block)


def formula(text: str) -> str:
    """HTML of lines such as `h_k = a h_{k-1} + b^2`: words upright, other letters in italics."""
    return _with_indices(re.sub(rf"{_LETTER}+|[<>&]", _italic, text.replace("-", MINUS)))


def _italic(found: re.Match[str]) -> str:
    upright = re.fullmatch(r"[A-Za-z]{3,}|Re|up|[<>&]", found[0])
    return escape(found[0]) if upright else f"<i>{found[0]}</i>"


def _with_indices(html: str) -> str:
    """With `_{…}` and `^{…}` lowered and raised, and without braces what is a letter or a number."""
    for mark, tag in (("_", "sub"), (r"\^", "sup")):
        html = re.sub(rf"{mark}(?:\{{(.*?)\}}|(<i>.*?</i>|\w+))", rf"<{tag}>\1\2</{tag}>", html)
    return html


def _figure(image: bytes, caption: str) -> str:
    width = int.from_bytes(image[16:20], "big") / figures.DPI * 100  # PNG's header
    source = f"data:image/png;base64,{b64encode(image).decode('ascii')}"
    return (
        f"<figure><img style='width:{width:.0f}px' alt='{escape(caption)}' src='{source}'>"
        f"<figcaption>{_markdown(caption)}</figcaption></figure>"
    )


def _markdown(text: str) -> str:
    markdown = _imported("markdown_it").MarkdownIt("commonmark").enable("table")
    markdown.add_render_rule("text", lambda _, tokens, index, *__: _sentence(tokens[index].content))
    return markdown.render(re.sub("^#", "##", text, flags=re.MULTILINE)).strip()  # the title is above them


def _sentence(text: str) -> str:
    """HTML of words among which a letter may have an index or a power, as `N^{-s}` and `B_t`."""
    indexed = rf"(?<!\w){_LETTER}[_^](?:\{{[^}}]*\}}|\w)(?!\w)"
    return re.sub(indexed, lambda m: _with_indices(m[0].replace("-", MINUS)), escape(text, quote=False))


def _code(text: str) -> str:
    code = f"<pre>{_highlighted(text, 'python')}</pre>"
    imports = re.fullmatch(r"(?:(?:from|import) .*|\s*)+", text)
    return f"<details><summary>imports</summary>{code}</details>" if imports else code


def _highlighted(text: str, language: str) -> str:
    pygments, formatters = _imported("pygments"), _imported("pygments.formatters")
    lexer = _imported("pygments.lexers").get_lexer_by_name(language)
    return pygments.highlight(text, lexer, formatters.HtmlFormatter(nowrap=True)).strip("\n")


def _colors() -> str:
    return (
        _imported("pygments.formatters").HtmlFormatter(style="tango", nobackground=True).get_style_defs("pre")
    )


def _imported(name: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError as missing:
        raise UserError(
            f"the page needs {missing.name}, which is not installed: pip install 'mambabyte[lineage]'"
        ) from missing
