"""report.html: one page that shows whether a run is healthy, made from its metrics.jsonl, config.json and pictures/."""

import html
from collections.abc import Iterable
from pathlib import Path

from deepseek_jax import record
from deepseek_jax.files import read_json, write_text
from deepseek_jax.html_page import document, heading, image, table
from deepseek_jax.train.reporting.shown import SHOWN, Shown
from deepseek_jax.train.reporting.sinks import METRICS_FILE, read_rows
from deepseek_jax.train.reporting.summary import scores_in
from deepseek_jax.train.reporting.verdict import verdict

PICTURES = "pictures"  # below a run directory: plots of a network's predictions

GOOD, BAD = "#1a7f37", "#bc4c00"  # colours of a verdict
STYLE = """
 h1 { margin-bottom: .2em }  .faint { color: #6e7781; font-size: .9em }
 .verdict { border-left: 6px solid var(--colour); background: #f6f8fa; padding: .6em 1em; border-radius: 4px }
 .verdict b { color: var(--colour) }  td:last-child { text-align: right; padding-right: 0 }
"""


def write(workdir: str | Path) -> Path | None:
    """Writes report.html into a run directory and returns its path; None if the run has no rows yet."""
    workdir = Path(workdir)
    if not (workdir / METRICS_FILE).exists():
        return None
    rows, config = list(read_rows(workdir / METRICS_FILE)), read_json(workdir / record.CONFIG_FILE)
    experiment = config["experiment"]
    shown = SHOWN[experiment.get("family", "language_model")]
    healthy, sentences = verdict(rows, experiment["train"]["steps"], shown)
    word, colour = ("Healthy", GOOD) if healthy else ("Look here", BAD)
    sections = _sections(rows, workdir, shown)
    path = workdir / "report.html"
    write_text(path, page(workdir, _origin(config), word, colour, "; ".join(sentences) + ".", sections))
    return path


def page(directory: Path, origin: str, word: str, colour: str, sentences: str, sections: Iterable[str]) -> str:
    """The HTML of a report on `directory`: its origin, a verdict (a word, then sentences), then `sections` of HTML."""
    name = directory.resolve().name
    head = (
        heading(name),
        f'<div class="faint">{html.escape(origin)}</div>',
        f'<p class="verdict" style="--colour: {colour}"><b>{word}:</b> {html.escape(sentences)}</p>',
    )
    return document(name, (*head, *sections), STYLE)


def _origin(config: dict) -> str:
    packages = ", ".join(f"{name} {config['packages'][name]}" for name in ("jax", "flax") if name in config["packages"])
    commit = f", commit {config['git']['commit'][:10]}" if config.get("git") else ""
    return f"experiment {config['hash']}{commit}, Python {config['python']}, {packages}"


def _sections(rows: list[dict], workdir: Path, shown: Shown):
    if not any(shown.loss in row for row in rows):
        return
    from deepseek_jax.train.reporting import plots  # matplotlib takes a second to import, and only the report needs it

    yield image(plots.curves(rows, shown), f"loss, learning rate, gradient norm, {shown.unit} a second")
    experts = plots.balance(rows)
    if experts:
        yield f"<h2>Expert load</h2>{image(experts, 'expert load, a row for each layer')}"
    for path in sorted((workdir / PICTURES).glob("*.png")):
        yield f"<h2>{html.escape(path.stem.capitalize())}</h2>{image(path.read_bytes(), path.stem)}"
    scores = scores_in(rows, shown)
    if scores:
        yield "<h2>Scores</h2>" + table((), [(name, _number(value)) for name, value in scores.items()])


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.5g}"
