"""report.html: one page that shows whether a run is healthy, made from its metrics.jsonl and config.json alone."""

import base64
import html
import json
from pathlib import Path

from deepseek_jax.train.shown import SHOWN, Shown
from deepseek_jax.train.sinks import FILE, read_rows
from deepseek_jax.train.summary import final_scores
from deepseek_jax.train.verdict import verdict

PICTURES = "pictures"  # below a run directory: what a task drew of its answers

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>
 body {{ font: 15px/1.5 system-ui, sans-serif; color: #24292f; max-width: 1150px; margin: 2em auto; padding: 0 1em }}
 h1 {{ font-size: 1.3em; margin-bottom: .2em }}  h2 {{ font-size: 1.05em; margin: 1.6em 0 .4em }}
 .verdict {{ border-left: 6px solid {colour}; background: #f6f8fa; padding: .6em 1em; border-radius: 4px }}
 .verdict b {{ color: {colour} }}  .faint {{ color: #6e7781; font-size: .9em }}
 img {{ max-width: 100% }}  table {{ border-collapse: collapse }}
 td {{ padding: .2em 1.4em .2em 0; border-bottom: 1px solid #d8dee4 }}
 td:last-child {{ text-align: right; font-variant-numeric: tabular-nums; padding-right: 0 }}
</style>
<h1>{title}</h1>
<div class="faint">{origin}</div>
<p class="verdict"><b>{word}</b> {sentences}</p>
{body}
</html>
"""


def write(workdir: str | Path) -> Path | None:
    """Writes report.html into a run directory and gives its path; None where the run has no rows yet."""
    workdir = Path(workdir)
    if not (workdir / FILE).exists():
        return None
    rows, config = list(read_rows(workdir / FILE)), json.loads((workdir / "config.json").read_text())
    experiment = config["experiment"]
    shown = SHOWN[experiment.get("family", "language_model")]
    healthy, sentences = verdict(rows, experiment["train"]["steps"], shown)
    page = PAGE.format(
        title=html.escape(workdir.resolve().name),
        origin=html.escape(_origin(config)),
        colour="#1a7f37" if healthy else "#bc4c00",
        word="Healthy:" if healthy else "Look here:",
        sentences=html.escape("; ".join(sentences)) + ".",
        body="\n".join(_sections(rows, workdir, shown)),
    )
    path = workdir / "report.html"
    path.write_text(page)
    return path


def _origin(config: dict) -> str:
    packages = ", ".join(f"{name} {config['packages'][name]}" for name in ("jax", "flax") if name in config["packages"])
    commit = f", commit {config['git']['commit'][:10]}" if config.get("git") else ""
    return f"experiment {config['hash']}{commit}, Python {config['python']}, {packages}"


def _sections(rows: list[dict], workdir: Path, shown: Shown):
    if not any(shown.loss in row for row in rows):
        return
    from deepseek_jax.train import plots  # matplotlib takes a second to import, and only the report needs it

    yield picture(plots.curves(rows, shown), f"loss, learning rate, gradient norm, {shown.unit} a second")
    experts = plots.balance(rows)
    if experts:
        yield f"<h2>Expert load</h2>{picture(experts, 'expert load, a row for each layer')}"
    for path in sorted((workdir / PICTURES).glob("*.png")):
        yield f"<h2>{html.escape(path.stem.capitalize())}</h2>{picture(path.read_bytes(), path.stem)}"
    scores = final_scores(workdir, shown)
    if scores:
        cells = "".join(
            f"<tr><td>{html.escape(name)}</td><td>{_number(value)}</td></tr>" for name, value in scores.items()
        )
        yield f"<h2>Scores</h2><table>{cells}</table>"


def picture(png: bytes, description: str) -> str:
    """An image of a page, inside of it."""
    return f'<img alt="{description}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.5g}"
