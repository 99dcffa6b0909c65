"""Plots of a trained network's predictions: a confusion matrix, detected boxes, or predicted against true numbers."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from deepseek_jax.data.sets.dataset import Dataset, as_unit
from deepseek_jax.figures import BLUE, FAINT, GREEN, INK, ORANGE, PLAIN, STYLE, png, tidy
from deepseek_jax.files import write_bytes
from deepseek_jax.tasks import scores
from deepseek_jax.tasks.detection import FOUND

SHOWN_PICTURES = 8  # in the plot of detected boxes
SHOWN_CLASSES = 40  # rows of a confusion matrix that can still be read; plotting 300 took 8 GB
SAME_PLACE = 0.08  # boxes nearer than this share of the picture have their labels on separate lines


def draw(found: dict, dataset: Dataset, directory: Path):
    """Writes a PNG of the predictions on the test split; `found` is what supervised.collect returned for it."""
    if dataset.kind == "classes":
        matrix = scores.confusion(found["answer"], found["labels"].argmax(axis=1))
        write_bytes(directory / "confusion.png", confusion(matrix, dataset.class_names))
    elif dataset.kind == "numbers":
        undo = dataset.scaling.undo_targets
        pairs = undo(found["answer"]), undo(found["targets"])
        write_bytes(directory / "numbers.png", numbers(*pairs, dataset))
    else:
        images = as_unit(dataset.splits["test"]["inputs"][:SHOWN_PICTURES])
        write_bytes(directory / "boxes.png", boxes(images, found, dataset.class_names))


def confusion(matrix_KK: np.ndarray, names: tuple[str, ...]) -> bytes:
    """A PNG of the confusion matrix.  Rows: true classes; columns: predicted ones; colours: share of the row.

    With more than SHOWN_CLASSES classes, it shows those with the most mistakes.
    """
    share_KK = matrix_KK / np.maximum(matrix_KK.sum(axis=1, keepdims=True), 1)
    shown = most_mistaken(matrix_KK)
    matrix_KK, share_KK = (each[np.ix_(shown, shown)] for each in (matrix_KK, share_KK))
    of_many = f" (the {len(shown)} of {len(names)} classes with the most mistakes)" if len(shown) < len(names) else ""
    names = [names[label] for label in shown]
    size = 2.2 + 0.38 * len(names)
    figure = Figure(figsize=(size + 1, size), layout="constrained")
    axes = figure.subplots()
    axes.imshow(share_KK, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(matrix_KK):
        if count:
            colour = "white" if share_KK[row, column] > 0.5 else INK
            axes.text(column, row, str(count), ha="center", va="center", fontsize=7, color=colour)
    axes.set_xticks(range(len(names)), names, rotation=90, **PLAIN)
    axes.set_yticks(range(len(names)), names, **PLAIN)
    axes.set_xlabel("taken for", **STYLE)
    axes.set_ylabel(f"is{of_many}", **STYLE)
    axes.tick_params(labelsize=8, colors=INK, length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return png(figure)


def most_mistaken(matrix_KK: np.ndarray) -> np.ndarray:
    """Indices, ascending, of the SHOWN_CLASSES classes most often confused with others, in either direction."""
    wrong_K = matrix_KK.sum(axis=0) + matrix_KK.sum(axis=1) - 2 * matrix_KK.diagonal()
    return np.sort(np.argsort(-wrong_K, kind="stable")[:SHOWN_CLASSES])


def numbers(predicted_RN: np.ndarray, true_RN: np.ndarray, dataset: Dataset) -> bytes:
    """A PNG of forecast windows over time, or, where the task is no forecast, of predicted against true values."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    if dataset.season:
        _forecast(axes, predicted_RN, true_RN)
    else:
        low, high = true_RN.min(), true_RN.max()
        axes.plot([low, high], [low, high], color=FAINT)
        axes.plot(true_RN.ravel(), predicted_RN.ravel(), "o", color=BLUE, markersize=3, alpha=0.6)
        axes.set_xlabel("true", **STYLE)
        axes.set_ylabel("predicted", **STYLE)
    tidy(axes)
    return png(figure)


def _forecast(axes: Axes, predicted_RN: np.ndarray, true_RN: np.ndarray):
    """Plots every horizon-th window, so that none overlap; each is relative to its own last known value."""
    if true_RN.shape[1] == 1:  # join them into one line: a line of a single step would be invisible
        predicted_RN, true_RN = predicted_RN.T, true_RN.T
    horizon = true_RN.shape[1]
    windows = range(0, len(true_RN), horizon)
    for place, window in enumerate(windows):
        steps = place * horizon + np.arange(horizon)
        axes.plot(steps, true_RN[window], color=INK, linewidth=1.2, label="true" if not place else None)
        axes.plot(steps, predicted_RN[window], color=ORANGE, linewidth=1.2, label="forecast" if not place else None)
    axes.set_xlabel("steps of the test split", **STYLE)
    axes.set_ylabel("change since the last known value", **STYLE)
    axes.legend(frameon=False, fontsize=8, labelcolor=INK)


def boxes(images: np.ndarray, found: dict, names: tuple[str, ...]) -> bytes:
    """A PNG of the first pictures with true boxes in green and detected ones in orange, with class and score."""
    columns = min(4, len(images))
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(2.6 * columns, 2.7 * rows), layout="constrained")
    for place, axes in enumerate(np.atleast_1d(figure.subplots(rows, columns)).flat):
        axes.axis("off")
        if place >= len(images):
            continue
        image = images[place]
        axes.imshow(image if image.shape[-1] == 3 else image[..., 0], cmap="gray", vmin=0, vmax=1)
        for box, label in zip(found["boxes"][place], found["box_labels"][place]):
            if label >= 0:
                _box(axes, box, image.shape, GREEN, "")
        drawn = []
        for box, label, score in zip(*(part[place] for part in found["answer"])):
            if score >= FOUND:
                above = sum(np.abs(box - other).max() < SAME_PLACE for other in drawn)
                _box(axes, box, image.shape, ORANGE, f"{names[label]} {score:.2f}" + "\n" * above)
                drawn.append(box)
    return png(figure)


def _box(axes: Axes, box, shape: tuple, colour: str, text: str):
    y0, x0, y1, x1 = np.asarray(box) * np.tile(shape[:2], 2)
    axes.add_patch(Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, edgecolor=colour, linewidth=1.2))
    axes.text(x0, y0 - 1, text, color=colour, fontsize=7, va="bottom", **PLAIN)
