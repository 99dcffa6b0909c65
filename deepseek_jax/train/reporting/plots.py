"""The plots of a run's report, drawn from the rows of its metrics.jsonl; each is a PNG."""

from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from deepseek_jax.figures import BLUE, GREEN, INK, ORANGE, STYLE, png, tidy
from deepseek_jax.train.reporting.sampled_indices import sampled_indices
from deepseek_jax.train.reporting.shown import Shown


def curves(rows: list[dict], shown: Shown) -> bytes:
    """Loss, learning rate, gradient norm and throughput over the steps."""
    figure = Figure(figsize=(11, 6), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True)
    drawn: list[Callable] = [_loss, _learning_rate, _gradient_norm, _throughput]
    for axes, draw in zip(panels.flat, drawn):
        draw(axes, rows, shown)
        tidy(axes)
    for axes in panels[1]:
        axes.set_xlabel("step", **STYLE)
    return png(figure)


def _loss(axes: Axes, rows: list[dict], shown: Shown):
    axes.set_title(shown.loss_label, loc="left", **STYLE)
    steps, loss = _series(rows, shown.loss)
    axes.plot(steps, loss, color=BLUE, alpha=0.35, linewidth=0.8)
    axes.plot(*_smooth(steps, loss), color=BLUE, linewidth=1.6, label="training")
    for name, label in shown.extra:
        steps, further = _series(rows, name)
        if len(steps):
            axes.plot(*_smooth(steps, further), color=GREEN, linewidth=1.0, label=label)
    steps, held_out = _series(rows, "val/loss")
    if len(steps):
        axes.plot(steps, held_out, "o-", color=ORANGE, markersize=4, linewidth=1.2, label="held out")
    _, kept = _series(rows, "stopping/kept_step")  # where early stopping is on
    if len(kept):
        axes.axvline(kept[-1], color=INK, linewidth=1.2, linestyle="--", label=f"step {kept[-1]:.0f} is kept")
    axes.legend(frameon=False, fontsize=8, labelcolor=INK)


def _learning_rate(axes: Axes, rows: list[dict], shown: Shown):
    axes.set_title("learning rate", loc="left", **STYLE)
    axes.plot(*_series(rows, "learning_rate"), color=BLUE, linewidth=1.6)
    axes.set_ylim(bottom=0)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 3))


def _gradient_norm(axes: Axes, rows: list[dict], shown: Shown):
    axes.set_title("gradient norm, before clipping", loc="left", **STYLE)
    steps, norm = _series(rows, "grad_norm")
    axes.plot(steps, norm, color=BLUE, alpha=0.35, linewidth=0.8)
    axes.plot(*_smooth(steps, norm), color=BLUE, linewidth=1.6)
    if (norm > 0).any():
        axes.set_yscale("log")


def _throughput(axes: Axes, rows: list[dict], shown: Shown):
    axes.set_title(f"{shown.unit} a second", loc="left", **STYLE)
    axes.plot(*_series(rows, shown.speed), color=BLUE, linewidth=1.2)
    axes.set_ylim(bottom=0)


def balance(rows: list[dict]) -> bytes | None:
    """Heat maps of expert load: each layer's busiest expert over the steps, and every expert's share at the end.

    None if the model has no routed experts.
    """
    measured = [row for row in rows if row.get("router/max_violation")]
    if not measured:
        return None
    shares = next((row["router/share"] for row in reversed(rows) if "router/share" in row), {})
    layers = list(measured[0]["router/max_violation"])
    height = 1.2 + 0.24 * max(len(layers), 4)
    figure = Figure(figsize=(11, height), layout="constrained")
    left, right = figure.subplots(1, 2) if shares else (figure.subplots(), None)
    busiest = np.array([[row["router/max_violation"][layer] + 1 for row in measured] for layer in layers])
    steps = [row["step"] for row in measured]
    _heat(
        figure, left, busiest, LogNorm(1, max(4, busiest.max())), "magma_r", "load of the busiest expert / mean", layers
    )
    ticks = np.unique(np.linspace(0, len(steps) - 1, 6).astype(int))
    left.set_xticks(ticks, [steps[tick] for tick in ticks])
    left.set_xlabel("step", **STYLE)
    if right:
        relative = np.array([shares[layer] for layer in layers])
        mean = np.maximum(relative.mean(axis=1, keepdims=True), np.finfo(float).tiny)  # 0 if a step had no token
        relative = np.maximum(relative / mean, 1 / 16)
        _heat(figure, right, relative, LogNorm(1 / 4, 4), "RdBu_r", "load / mean in the last evaluated step", layers)
        right.xaxis.set_major_locator(MaxNLocator(integer=True))
        right.set_xlabel("expert", **STYLE)
    return png(figure)


def _heat(figure: Figure, axes: Axes, values: np.ndarray, norm, colours: str, title: str, layers: list[str]):
    image = axes.imshow(values, aspect="auto", norm=norm, cmap=colours, interpolation="nearest")
    axes.set_title(title, loc="left", **STYLE)
    shown = range(0, len(layers), -(-len(layers) // 32))
    axes.set_yticks(shown, [layers[place] for place in shown])
    axes.set_ylabel("layer", **STYLE)
    axes.tick_params(labelsize=8, colors=INK, length=0)
    bar = figure.colorbar(image, ax=axes, pad=0.01)
    powers = [tick for tick in (0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128, 256) if norm.vmin <= tick <= norm.vmax]
    bar.set_ticks(powers, labels=[f"{tick:g}" for tick in powers], minor=False)
    bar.ax.minorticks_off()
    bar.ax.tick_params(labelsize=8, colors=INK, length=0)
    bar.outline.set_visible(False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _series(rows: list[dict], name: str) -> tuple[np.ndarray, np.ndarray]:
    pairs = [(row["step"], row[name]) for row in rows if name in row]
    steps, values = zip(*pairs) if pairs else ((), ())
    return np.array(steps), np.array(values, float)


def _smooth(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(steps, running medians over a twentieth of the run, which single spikes do not bend)."""
    reach, at = max(len(values) // 40, 1), sampled_indices(len(values))
    return steps[at], np.array([np.median(values[max(0, i - reach) : i + reach + 1]) for i in at])
