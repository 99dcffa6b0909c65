"""The figures of a study's report: loss curves with bands over seeds, the metric of every seed, and expert loads."""

import textwrap
from collections.abc import Mapping

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from deepseek_jax.figures import INK, STYLE, add_legend, png, tidy
from deepseek_jax.studies import curves
from deepseek_jax.studies.results import values
from deepseek_jax.train.reporting.shown import SHOWN

COLOURS = ("#2563a8", "#d9730d", "#3c8c5a", "#a23b72", "#6b5b95", "#8c8c3c", "#5b8ca8", "#b04a4a", "#444444", "#7fb069")

DASHES = ("-", "--", ":")
TITLE = 46  # characters that fit across a panel of loads


def colour(place: int) -> str:
    return COLOURS[place % len(COLOURS)]


def line(place: int) -> dict[str, str]:
    """The style of a variant's curve: when there are more variants than colours, reused colours are dashed."""
    return {"color": colour(place), "linestyle": DASHES[place // len(COLOURS) % len(DASHES)]}


def losses(results: Mapping, names: list[str]) -> bytes | None:
    """Training loss over tokens or records, mean ± deviation over seeds; beside it, minus the first variant's."""
    found = curves.by_variant(results)
    if not found:
        return None
    shown = SHOWN[results["family"]]
    base = found.get(names[0])
    figure = Figure(figsize=(10 if base else 5, 3.6), layout="constrained")
    left, *beside = figure.subplots(1, 2 if base else 1, squeeze=False)[0]
    for place, name in enumerate(names):
        if name not in found:
            continue
        spent, loss, deviation = found[name]
        left.plot(spent, loss, **line(place), linewidth=1.4, label=name)
        left.fill_between(spent, loss - deviation, loss + deviation, color=colour(place), alpha=0.15, linewidth=0)
        for right in beside if place else ():
            there = (spent >= base[0][0]) & (spent <= base[0][-1])
            right.plot(spent[there], (loss - np.interp(spent, *base[:2]))[there], **line(place), linewidth=1.4)
    left.set_title(f"training {shown.loss_label}", loc="left", **STYLE)
    for right in beside:
        right.axhline(0, color=INK, linewidth=0.8)
        right.set_title(f"minus that of {names[0]}", loc="left", **STYLE)
    add_legend(left, fontsize=7, labelcolor=INK)
    for axes in (left, *beside):
        axes.set_xlabel(f"{shown.unit} spent", **STYLE)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 200k
        tidy(axes)
    return png(figure)


def seeds(results: Mapping, names: list[str], metric: str) -> bytes | None:
    """The metric of every run, a row per variant; lines join equal seeds and so show whether pairs move together."""
    found = values(results, metric)
    names = [name for name in names if name in found]
    if not names:
        return None
    figure = Figure(figsize=(6, 0.9 + 0.3 * len(names)), layout="constrained")
    axes = figure.subplots()
    for seed in sorted({seed for of in found.values() for seed in of}):
        there = [(found[name][seed], place) for place, name in enumerate(names) if seed in found[name]]
        axes.plot(*zip(*there), "o-", color=colour(seed), markersize=4, linewidth=0.6, alpha=0.8, label=f"seed {seed}")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_title(metric, loc="left", **STYLE)
    add_legend(axes, fontsize=7, labelcolor=INK)
    tidy(axes)
    return png(figure)


def loads(results: Mapping, names: list[str]) -> bytes | None:
    """Each expert's load at the last step over the mean load; a row per layer and seed, a panel per variant."""
    shares = {name: _shares(results, name) for name in names}
    shares = {name: rows for name, rows in shares.items() if rows}
    if not shares:
        return None
    across = min(len(shares), 3)
    down = -(-len(shares) // across)
    height = max(len(rows) for rows in shares.values())
    figure = Figure(figsize=(3.4 * across, down * (0.7 + 0.16 * height)), layout="constrained")
    panels = np.atleast_1d(figure.subplots(down, across)).ravel()
    for axes, (name, rows) in zip(panels, shares.items()):
        width = max(len(share) for share in rows)
        table = np.full((len(rows), width), np.nan)
        for row, share in enumerate(rows):
            table[row, : len(share)] = np.maximum(np.array(share) * len(share), 1 / 16)
        image = axes.imshow(table, aspect="auto", norm=LogNorm(1 / 4, 4), cmap="RdBu_r", interpolation="nearest")
        axes.set_title(textwrap.fill(name, TITLE), loc="left", **STYLE)
        axes.tick_params(labelsize=7, colors=INK, length=0)
        axes.set_yticks([])
        axes.xaxis.get_major_locator().set_params(integer=True)  # expert numbers
    for axes in panels[len(shares) :]:
        axes.axis("off")
    bar = figure.colorbar(image, ax=list(panels), pad=0.01)
    bar.set_ticks([0.25, 0.5, 1, 2, 4], labels=["1/4", "1/2", "1", "2", "4"], minor=False)
    bar.ax.minorticks_off()
    bar.ax.tick_params(labelsize=7, colors=INK, length=0)
    return png(figure)


def _shares(results: Mapping, name: str) -> list[list[float]]:
    return [share for run in results["runs"] if run["variant"] == name for share in run["shares"].values()]
