"""A page as a list of blocks, rendered as Markdown or HTML."""

import dataclasses
import html
import re
from collections.abc import Sequence

from deepseek_jax.html_page import document, image

STYLE = """
 td, th { font-size: .92em }  pre { background: #f6f8fa; padding: .6em 1em; border-radius: 4px }
"""


@dataclasses.dataclass(frozen=True)
class Heading:
    text: str
    level: int = 2


@dataclasses.dataclass(frozen=True)
class Paragraph:
    """Text; **bold** and `code` are marked as in Markdown."""

    text: str


@dataclasses.dataclass(frozen=True)
class Table:
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Code:
    text: str


@dataclasses.dataclass(frozen=True)
class Picture:
    file: str
    alt: str
    png: bytes


Block = Heading | Paragraph | Table | Code | Picture


def markdown(blocks: Sequence[Block]) -> str:
    return "\n\n".join(_markdown(block) for block in blocks) + "\n"


def _markdown(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {text}"
        case Paragraph(text):
            return text
        case Table(head, rows):
            lines = [head, ["---"] * len(head), *rows]
            return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)
        case Code(text):
            return "\n".join(f"    {line}" for line in text.splitlines())
        case Picture(file, alt, _):
            return f"![{alt}]({file})"


def _cell(text: str) -> str:
    """The text on a single line, as a table row needs: a reason may have several lines."""
    return " ".join(map(str.strip, text.splitlines())).replace("|", "\\|")


def page(title: str, blocks: Sequence[Block]) -> str:
    """Self-contained HTML."""
    return document(title, map(_html, blocks), STYLE)


def _html(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{_inline(text)}</h{level}>"
        case Paragraph(text):
            return f"<p>{_inline(text)}</p>"
        case Table(head, rows):
            lines = [_row("th", head), *(_row("td", row) for row in rows)]
            return "<table>\n" + "\n".join(lines) + "\n</table>"
        case Code(text):
            return f"<pre>{html.escape(text)}</pre>"
        case Picture(_, alt, png):
            return image(png, alt)


def _row(tag: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{_inline(cell)}</{tag}>" for cell in cells) + "</tr>"


def _inline(text: str) -> str:
    text = html.escape(text, quote=False)
    text = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", text)
    return re.sub(r"`(.+?)`", r"<code>\1</code>", text)
