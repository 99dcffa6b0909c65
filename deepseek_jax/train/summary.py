"""The end of a run: its final scores, and the table that is shown."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from deepseek_jax.data.baseline import COMPRESSORS
from deepseek_jax.train.sinks import FILE, read_rows

SPEED = "tokens_per_second"


def final_scores(workdir: Path) -> dict[str, float]:
    """The final/* scores of a finished run, and the median of its tokens/s; {} for a run that never wrote a row."""
    rows = list(read_rows(workdir / FILE)) if (workdir / FILE).exists() else []
    scores = {key: value for row in rows for key, value in row.items() if key.startswith("final/")}
    speeds = sorted(row[SPEED] for row in rows if SPEED in row)
    return scores | ({SPEED: speeds[len(speeds) // 2]} if speeds else {})


def show(console: Console, workdir: Path, samples: list[str]):
    """Prints the table of a finished run, and its samples."""
    scores = final_scores(workdir)
    labels = {
        "final/loss": ("validation loss, nats a token", ".4f"),
        "final/bits_per_byte": ("validation bits per byte", ".4f"),
        **{f"final/{name}": (f"  {name} on the same bytes", ".4f") for name in COMPRESSORS},
        SPEED: ("tokens/s", ",.0f"),
    }
    table = Table(show_header=False)
    for name, (label, form) in labels.items():
        if name in scores:
            table.add_row(label, format(scores[name], form))
    table.add_row("run directory", str(workdir))
    console.print(table)
    for number, sample in enumerate(samples, start=1):
        console.rule(f"sample {number}")
        console.print(sample, markup=False, highlight=False)
