"""The parts of a page that shows data: one HTML file with everything in it."""

import base64
import html
from collections.abc import Iterable

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>
 body {{ font: 15px/1.5 system-ui, sans-serif; color: #24292f; max-width: 1150px; margin: 2em auto; padding: 0 1em }}
 h1 {{ font-size: 1.3em }}  h2 {{ font-size: 1.05em; margin: 1.6em 0 .4em }}  img {{ max-width: 100% }}
 table {{ border-collapse: collapse }}  td, th {{ padding: .2em 1.2em .2em 0; border-bottom: 1px solid #d8dee4 }}
 td, th {{ text-align: left; vertical-align: top }}
</style>
<h1>{title}</h1>
{body}
</html>
"""


def whole(title: str, sections: Iterable[str]) -> str:
    return PAGE.format(title=html.escape(title), body="\n".join(sections))


def table(heads: Iterable, rows: Iterable[Iterable]) -> str:
    def line(cells, tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(_written(cell))}</{tag}>" for cell in cells) + "</tr>"

    return "<table>" + line(heads, "th") + "".join(line(row, "td") for row in rows) + "</table>"


def image(png: bytes, name: str) -> str:
    return f'<img alt="{html.escape(name)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def _written(cell) -> str:
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)
