"""Self-contained HTML pages: style, tables, embedded pictures."""

import base64
import html
from collections.abc import Iterable, Sequence

STYLE = """
 body { font: 15px/1.5 system-ui, sans-serif; color: #24292f; max-width: 1150px; margin: 2em auto; padding: 0 1em }
 h1 { font-size: 1.3em }  h2 { font-size: 1.05em; margin: 1.6em 0 .4em }  img { max-width: 100% }
 table { border-collapse: collapse; font-variant-numeric: tabular-nums }
 td, th { padding: .2em 1.2em .2em 0; border-bottom: 1px solid #d8dee4; text-align: left; vertical-align: top }
"""


def document(title: str, sections: Iterable[str], style: str = "") -> str:
    """`sections`: HTML, including the heading; `style`: CSS in addition to STYLE."""
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title>\n<style>{STYLE}{style}</style>'
    return f'<!doctype html>\n<html lang="en">{head}\n' + "\n".join(sections) + "\n</html>\n"


def heading(title: str) -> str:
    return f"<h1>{html.escape(title)}</h1>"


def image(png: bytes, description: str) -> str:
    return f'<img alt="{html.escape(description)}" src="{data_url(png)}">'


def data_url(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def table(heads: Sequence, rows: Iterable[Sequence]) -> str:
    """Cells are escaped; floats have four significant digits.  Without `heads` the table has only `rows`."""
    lines = [_line("th", heads)] if heads else []
    return "<table>" + "".join([*lines, *(_line("td", row) for row in rows)]) + "</table>"


def _line(tag: str, cells: Iterable) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(_written(cell))}</{tag}>" for cell in cells) + "</tr>"


def _written(cell) -> str:
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)
