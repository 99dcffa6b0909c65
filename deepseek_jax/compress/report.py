"""pruning.html: a pruned model's loss, and how much was removed of each matrix."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from deepseek_jax.figures import BLUE, INK, ORANGE, STYLE, png, tidy
from deepseek_jax.files import write_text
from deepseek_jax.html_page import image, table
from deepseek_jax.train.reporting.report import GOOD, page

PRUNING_FILE = "pruning.html"


def write(directory: Path, method: str, losses: dict[float, float], at: float, left: dict[str, tuple[int, int]]):
    """Writes the page.  `losses`: by share removed; `at`: the share removed from this model; `left`: see `Removed`."""
    kept, total = (sum(pair[place] for pair in left.values()) for place in (0, 1))
    loss = f"validation loss {losses[at]:.4f}, before {losses[0.0]:.4f}"
    sentences = f"{1 - kept / total:.1%} of {total:,} weights gone; {loss}."
    sections = [
        image(drawn(losses, at, left), "loss against sparsity, and what was removed where"),
        "<h2>What stays</h2>" + table((), [(path, f"{kept:,} of {total:,}") for path, (kept, total) in left.items()]),
    ]
    content = page(directory, f"pruned by {method}", "Pruned", GOOD, sentences, sections)
    write_text(directory / PRUNING_FILE, content)


def drawn(losses: dict[float, float], at: float, left: dict[str, tuple[int, int]]) -> bytes:
    """A PNG: the loss against the share removed, beside the share removed of each matrix."""
    figure = Figure(figsize=(11, 1.5 + 0.2 * max(len(left), 12)), layout="constrained")
    curves, where = figure.subplots(1, 2)
    curves.plot(*zip(*sorted(losses.items())), "o-", color=BLUE, markersize=4)
    curves.plot([at], [losses[at]], "o", color=ORANGE, markersize=7)
    curves.set_title("validation loss, before fine-tuning", loc="left", **STYLE)
    curves.set_xlabel("share removed", **STYLE)
    removed = [1 - kept / total for kept, total in left.values()]
    where.barh(np.arange(len(left)), removed, color=BLUE)
    where.set_yticks(np.arange(len(left)), list(left), fontsize=7, color=INK)
    where.invert_yaxis()
    where.set_xlim(0, 1)
    where.set_title("share removed of each matrix", loc="left", **STYLE)
    for axes in (curves, where):
        tidy(axes)
    where.tick_params(axis="y", labelsize=7)
    return png(figure)
