"""Records as pictures (PNG) for a person to look at: images with boxes, series with what follows them.

B records  H height  W width  C channels  M boxes a picture
"""

import io

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

INK, BLUE, ORANGE = "#24292f", "#2563a8", "#d9730d"
STYLE = {"size": 8, "color": INK}


def grid(rows: dict[str, dict], class_names: tuple[str, ...]) -> bytes:
    """A row of pictures for each batch, under the batch's name; labels stand above, boxes are drawn in."""
    names, count = list(rows), len(next(iter(rows.values()))["inputs"])
    figure = Figure(figsize=(1.3 * count, 1.5 * len(names)), layout="constrained")
    panels = figure.subplots(len(names), count, squeeze=False)
    for name, line in zip(names, panels, strict=True):
        batch = rows[name]
        for place, axes in enumerate(line):
            picture = np.clip(batch["inputs"][place], 0, 1)
            axes.imshow(picture[..., 0] if picture.shape[-1] == 1 else picture, cmap="gray", vmin=0, vmax=1)
            axes.set_xticks([]), axes.set_yticks([])
            if "labels" in batch:
                axes.set_title(label_of(batch["labels"][place], class_names), pad=2, **STYLE)
            elif "boxes" in batch:
                _draw_boxes(axes, batch["boxes"][place], batch["box_labels"][place], picture.shape, class_names)
        line[0].set_ylabel(name, **STYLE)
    return _png(figure)


def label_of(label_K: np.ndarray, class_names: tuple[str, ...]) -> str:
    """ "7", or "7 0.6, 3 0.4" for a blended label."""
    if label_K.max() == 1:
        return class_names[int(label_K.argmax())]
    return ", ".join(f"{class_names[k]} {label_K[k]:.1f}" for k in np.argsort(-label_K)[:2])


def _draw_boxes(axes, boxes_M4: np.ndarray, labels_M: np.ndarray, shape, class_names: tuple[str, ...]):
    size = np.array([*shape[:2]] * 2)
    for box, label in zip(boxes_M4, labels_M, strict=True):
        if label >= 0:
            y0, x0, y1, x1 = box * size - 0.5  # imshow puts the centre of pixel 0 at 0
            axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, color=ORANGE, linewidth=1.2))
            axes.text(x0, y0, class_names[label], color=ORANGE, size=8, va="bottom")


def curves(inputs_BSC: np.ndarray, targets_BZ: np.ndarray) -> bytes:
    """Windows of series in blue, what follows in orange."""
    figure = Figure(figsize=(2.6 * len(inputs_BSC), 2), layout="constrained")
    for axes, window, ahead in zip(figure.subplots(1, len(inputs_BSC)), inputs_BSC[..., 0], targets_BZ, strict=True):
        axes.plot(np.arange(len(window)), window, color=BLUE, linewidth=1.2)
        axes.plot(len(window) + np.arange(len(ahead)), ahead, color=ORANGE, linewidth=1.2)
        axes.tick_params(labelsize=7, colors=INK, length=0)
    return _png(figure)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
