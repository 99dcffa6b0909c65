"""A page as a list of blocks, rendered as Markdown or HTML."""

import dataclasses
from collections.abc import Sequence

from markdown_it import MarkdownIt

from deepseek_jax.html_page import data_url, document

STYLE = """
 td, th { font-size: .92em }  pre { background: #f6f8fa; padding: .6em 1em; border-radius: 4px }
"""


@dataclasses.dataclass(frozen=True)
class Heading:
    text: str
    level: int = 2


@dataclasses.dataclass(frozen=True)
class Paragraph:
    """Text in Markdown."""

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
    """Self-contained HTML: the Markdown rendered, with its pictures inside.  HTML in texts is shown as written."""

    def embedded(block):
        return dataclasses.replace(block, file=data_url(block.png)) if isinstance(block, Picture) else block

    renderer = MarkdownIt("commonmark", {"html": False}).enable("table")
    return document(title, [renderer.render(markdown([embedded(block) for block in blocks]))], STYLE)
