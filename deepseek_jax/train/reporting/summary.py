"""The end of a run: its final scores, and the table that shows them."""

import statistics
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from deepseek_jax.config import EvalConfig
from deepseek_jax.parallel import processes
from deepseek_jax.tasks.scores import HIGHER, LOWER
from deepseek_jax.train.reporting.shown import Shown
from deepseek_jax.train.reporting.sinks import METRICS_FILE, has_scores, read_rows

GOODPUT, FINAL, SETTINGS = "goodput", "final/", "eval"  # keys of rows; FINAL is a prefix of keys


def final_scores(workdir: Path, shown: Shown) -> dict[str, float]:
    """`scores_in` the metrics.jsonl of a run; {} if there is none."""
    return scores_in(read_rows(workdir / METRICS_FILE), shown) if (workdir / METRICS_FILE).exists() else {}


def scores_in(rows: Iterable[dict], shown: Shown) -> dict[str, float]:
    """The final/* scores of a run, its median speed and its latest goodput."""
    scores, goodput, speeds = {}, {}, []
    for row in rows:
        scores |= {key: value for key, value in row.items() if key.startswith(FINAL)}
        goodput |= {GOODPUT: row[GOODPUT]} if GOODPUT in row else {}
        speeds += [row[shown.speed]] if shown.speed in row else []
    return scores | ({shown.speed: statistics.median(speeds)} if speeds else {}) | goodput


def scored_with(config: EvalConfig) -> dict[str, int]:
    """The settings that final scores depend on, as stored in the row of these scores."""
    return {"final_batches": config.final_batches, "batch_size": config.final_batches and config.batch_size}


def is_scored(workdir: Path, config: EvalConfig) -> bool:
    """Whether the run has final scores, made with these settings.  Collective: every process must call it."""
    path, wanted = workdir / METRICS_FILE, scored_with(config)
    rows = (row for row in read_rows(path) if has_scores(row, FINAL)) if processes.is_leader() and path.exists() else ()
    found = any(row.get(SETTINGS, wanted) == wanted for row in rows)  # older runs did not store the settings
    return bool(processes.broadcast_from_leader(int(found)))


def show(console: Console, workdir: Path, shown: Shown, results: list[str]):
    """Prints the table of a finished run, then its `results`, which are texts."""
    scores = final_scores(workdir, shown)
    table = Table(show_header=False)
    timing = {shown.speed: (f"{shown.unit}/s", ",.0f"), GOODPUT: ("goodput, share of wall time in steps", ".1%")}
    for name, (label, form) in (shown.labels | _without_label(shown) | timing).items():
        if name in scores:
            table.add_row(label, format(scores[name], form))
    table.add_row("run directory", str(workdir))
    console.print(table)
    for number, result in enumerate(results, start=1):
        console.rule(f"sample {number}")
        console.print(result, markup=False, highlight=False)


def _without_label(shown: Shown) -> dict[str, tuple[str, str]]:
    """Scores that nobody gave a label, such as one of a user's own, are shown by their names."""
    names = {FINAL + name: name for name in (*HIGHER, *LOWER)}
    return {key: (name, ".5g") for key, name in names.items() if key not in shown.labels}
