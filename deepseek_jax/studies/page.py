"""A page as blocks, written as Markdown and as HTML."""

import base64
import dataclasses
import html
import re
from collections.abc import Sequence

STYLE = """
 body { font: 15px/1.5 system-ui, sans-serif; color: #24292f; max-width: 1100px; margin: 2em auto; padding: 0 1em }
 h1 { font-size: 1.3em }  h2 { font-size: 1.05em; margin: 1.6em 0 .4em }
 table { border-collapse: collapse; font-variant-numeric: tabular-nums }  img { max-width: 100% }
 td, th { padding: .2em 1em .2em 0; border-bottom: 1px solid #d8dee4; text-align: left; font-size: .92em }
 pre { background: #f6f8fa; padding: .6em 1em; border-radius: 4px }
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
    """In a single line, as a row of a table is: a reason may have several."""
    return " ".join(map(str.strip, text.splitlines())).replace("|", "\\|")


def page(title: str, blocks: Sequence[Block]) -> str:
    """HTML that needs no other file."""
    body = "\n".join(_html(block) for block in blocks)
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title>\n<style>{STYLE}</style>'
    return f'<!doctype html>\n<html lang="en">{head}\n{body}\n</html>\n'


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
            return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def _row(tag: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{_inline(cell)}</{tag}>" for cell in cells) + "</tr>"


def _inline(text: str) -> str:
    text = html.escape(text, quote=False)
    text = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", text)
    return re.sub(r"`(.+?)`", r"<code>\1</code>", text)
