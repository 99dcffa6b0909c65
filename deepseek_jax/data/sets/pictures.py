"""Records drawn as PNG pictures to look at: images with their boxes, series with their targets.

B records  H height  W width  C channels  M boxes per picture  Z steps of the horizon
"""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from deepseek_jax.figures import BLUE, INK, ORANGE, PLAIN, STYLE, png

SMALL = STYLE | {"size": 8}


def grid(rows: dict[str, dict], class_names: tuple[str, ...]) -> bytes:
    """A row of pictures for each batch in `rows`, with its name on the left; labels or captions above, boxes drawn."""
    count, H, W, C = next(iter(rows.values()))["inputs"].shape
    captioned = any("captions" in batch for batch in rows.values())
    gap_y, gap_x = max(H // (2 if captioned else 4), 2), max(W // 12, 1)  # space above each picture for its label
    sheet = np.ones((len(rows) * (H + gap_y), count * (W + gap_x), C), np.float32)
    figure = Figure(figsize=(1.2 * count, 1.2 * count * sheet.shape[0] / sheet.shape[1]))
    axes = figure.add_axes((0.02, 0, 0.98, 1))  # one Axes for all: one per picture would take seconds
    axes.set_axis_off()
    for line, (name, batch) in enumerate(rows.items()):
        y = line * (H + gap_y) + gap_y
        axes.text(-1, y + H / 2, name, va="center", ha="right", rotation=90, **SMALL)
        for place in range(count):
            x = place * (W + gap_x)
            sheet[y : y + H, x : x + W] = np.clip(batch["inputs"][place], 0, 1)
            if "captions" in batch:
                axes.text(x + W, y - 1, batch["captions"][place], va="bottom", ha="right", **SMALL)
            elif "labels" in batch:
                label = label_of(batch["labels"][place], class_names)
                axes.text(x + W, y - 1, label, va="bottom", ha="right", **SMALL)
            elif "boxes" in batch:
                _draw_boxes(axes, y, x, batch["boxes"][place] * [H, W, H, W], batch["box_labels"][place], class_names)
    edges = (0, sheet.shape[1], sheet.shape[0], 0)
    axes.imshow(sheet[..., 0] if C == 1 else sheet, cmap="gray", vmin=0, vmax=1, extent=edges, interpolation="nearest")
    return png(figure, dpi=110)


def label_of(label_K: np.ndarray, class_names: tuple[str, ...]) -> str:
    """ "7", or "7 0.6, 3 0.4" for a blended label."""
    if label_K.max() == 1:
        return class_names[int(label_K.argmax())]
    return ", ".join(f"{class_names[k]} {label_K[k]:.1f}" for k in np.argsort(-label_K)[:2])


def _draw_boxes(axes, y: int, x: int, boxes_M4: np.ndarray, labels_M: np.ndarray, class_names: tuple[str, ...]):
    """Draws boxes, in pixels, into the picture whose top left corner is at y, x."""
    for (y0, x0, y1, x1), label in zip(boxes_M4, labels_M, strict=True):
        if label >= 0:
            axes.add_patch(Rectangle((x + x0, y + y0), x1 - x0, y1 - y0, fill=False, color=ORANGE, linewidth=1.2))
            axes.text(x + x0, y + y0, class_names[label], color=ORANGE, size=7, va="bottom", **PLAIN)


def curves(inputs_BSC: np.ndarray, targets_BZ: np.ndarray) -> bytes:
    """Windows of series in blue, their targets in orange; these lines start at the last known value, so that a single
    target is visible."""
    figure = Figure(figsize=(2.6 * len(inputs_BSC), 2), layout="constrained")
    panels = figure.subplots(1, len(inputs_BSC), squeeze=False)[0]
    for axes, window, ahead in zip(panels, inputs_BSC[..., 0], targets_BZ, strict=True):
        axes.plot(np.arange(len(window)), window, color=BLUE, linewidth=1.2)
        axes.plot(len(window) - 1 + np.arange(1 + len(ahead)), [window[-1], *ahead], color=ORANGE, linewidth=1.2)
        axes.tick_params(labelsize=7, colors=INK, length=0)
    return png(figure, dpi=110)
