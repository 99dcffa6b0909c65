"""The HTML page with the results of the checks and the records concerned."""

import html
import itertools
import pathlib
import textwrap
from collections.abc import Iterator, Sequence

from deepseek_jax.data.quality.all_records import AllRecords
from deepseek_jax.data.quality.finding import Finding, Shown
from deepseek_jax.data.sets import pictures
from deepseek_jax.data.sets.dataset import as_unit
from deepseek_jax.html_page import document, heading, image, table

ACROSS = 8  # pictures per row
MOST = 24  # records shown per finding
LETTERS = 400  # characters shown of a text
TABLE_ROWS = 200
CAPTION = 17  # characters per line above a picture


def write(path: pathlib.Path, records: AllRecords, findings: Sequence[Finding]):
    counts = ", ".join(f"{(records.splits == name).sum():,} {name}" for name in dict.fromkeys(records.splits.tolist()))
    listed = "".join(
        f"<li><b>{html.escape(finding.title)}</b>: {html.escape(finding.sentence)}.</li>" for finding in findings
    )
    title = f"{records.name}: data check"
    notes = "".join(f"<p>{html.escape(note)}</p>" for note in records.notes)
    sections = [heading(title), f"<p>{len(records.ids):,} records: {counts}</p>{notes}<ul>{listed}</ul>"]
    for finding in findings:
        sections += _section(records, finding)
    path.write_text(document(title, sections), "utf-8")


def _section(records: AllRecords, finding: Finding) -> Iterator[str]:
    yield f"<h2>{html.escape(finding.title)}</h2><p>{html.escape(finding.sentence)}.</p>"
    if finding.rows:
        yield table(finding.heads, finding.rows[:TABLE_ROWS])
    count = max((len(shown) for shown in finding.examples.values()), default=0)
    if not count:
        return
    yield f"<p>{count:,} found{f', the first {MOST} shown' if count > MOST else ''}:</p>"
    show = {"image": _pictures, "series": _curves}.get(records.input, _rows)
    yield show(records, {name: shown[:MOST] for name, shown in finding.examples.items()})


def _pictures(records: AllRecords, examples: dict[str, list[Shown]]) -> str:
    pieces = []
    for at in range(0, MOST, ACROSS):
        rows = {
            name: {
                "inputs": as_unit(records.inputs[[place for place, _ in shown[at : at + ACROSS]]]),
                "captions": [textwrap.fill(caption, CAPTION) for _, caption in shown[at : at + ACROSS]],
            }
            for name, shown in examples.items()
            if len(shown) > at
        }
        if rows:
            pieces.append(image(pictures.grid(rows, records.group_names), "records"))
    return "<br>".join(pieces)


def _curves(records: AllRecords, examples: dict[str, list[Shown]]) -> str:
    places = [place for shown in examples.values() for place, _ in shown][:ACROSS]
    return image(pictures.curves(records.inputs[places], [()] * len(places)), "windows")


def _rows(records: AllRecords, examples: dict[str, list[Shown]]) -> str:
    """A table of texts or table rows; records that belong together are below each other."""
    together = itertools.chain.from_iterable(
        [(name, *shown) for name, shown in zip(examples, column, strict=True)]
        for column in zip(*examples.values(), strict=True)
    )
    return table(
        ("", "record", records.input), ((name, said, _written(records, place)) for name, place, said in together)
    )


def _written(records: AllRecords, place: int) -> str:
    if records.input == "text":
        return textwrap.shorten(records.inputs[place], LETTERS, placeholder=" ...")
    return ", ".join(f"{value:.4g}" for value in records.inputs[place])
