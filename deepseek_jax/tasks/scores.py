"""Scores of supervised tasks on held-out records, computed on the host by the libraries that define them; their names.

R records  K classes  N numbers  P predicted boxes of a picture  M true ones
"""

import contextlib
import io
import math

import numpy as np

BINS = 15  # of the calibration error, as in arXiv:1706.04599
MOST_PEAKS = 100  # boxes per picture that COCO's measure considers
HIGHER_IS_BETTER = {  # kind of answer -> its scores
    "classes": {"accuracy": True, "macro_f1": True, "calibration_error": False},
    "numbers": {"mse": False, "mae": False, "r2": True},
    "boxes": {"map50": True, "map": True},
}
NAMES = {kind: tuple(scores) for kind, scores in HIGHER_IS_BETTER.items()}
OF_TEXT = {"loss": False, "bits_per_byte": False}  # likewise for held-out text (train/evaluate.py)
_OF_ALL = {name: higher for scores in (OF_TEXT, *HIGHER_IS_BETTER.values()) for name, higher in scores.items()}
HIGHER = tuple(name for name, higher in _OF_ALL.items() if higher)
LOWER = tuple(name for name, higher in _OF_ALL.items() if not higher)
SIDE = 1000.0  # side in pixels that COCO is given for every picture


def of_classes(probabilities_RK: np.ndarray, labels_R: np.ndarray) -> dict[str, float]:
    """accuracy; macro_f1: mean over classes that occur or are predicted; calibration_error (expected, 15 bins)."""
    from sklearn.metrics import f1_score

    if not np.isfinite(probabilities_RK).all():
        return _unknown("classes")
    predicted_R = probabilities_RK.argmax(axis=1)
    return {
        "accuracy": float((predicted_R == labels_R).mean()),
        "macro_f1": float(f1_score(labels_R, predicted_R, average="macro", zero_division=0)),
        "calibration_error": calibration_error(probabilities_RK.max(axis=1), predicted_R == labels_R),
    }


def calibration_error(confidence_R: np.ndarray, right_R: np.ndarray) -> float:
    """Expected calibration error: mean |confidence - accuracy| of bins of equal width, weighted by their records."""
    bins_R = np.minimum((confidence_R * BINS).astype(int), BINS - 1)
    gaps = np.bincount(bins_R, weights=confidence_R - right_R, minlength=BINS)
    return float(np.abs(gaps).sum() / max(len(right_R), 1))


def confusion(probabilities_RK: np.ndarray, labels_R: np.ndarray) -> np.ndarray:
    """[K, K]: numbers of records by true class (rows) and predicted class (columns)."""
    from sklearn.metrics import confusion_matrix

    return confusion_matrix(labels_R, probabilities_RK.argmax(axis=1), labels=np.arange(probabilities_RK.shape[1]))


def of_numbers(predicted_RN: np.ndarray, targets_RN: np.ndarray) -> dict[str, float]:
    """mse, mae, r2 (mean over the N numbers; NaN for a single record, which has no variance), in the units given."""
    from sklearn.metrics import r2_score

    if not np.isfinite(predicted_RN).all():
        return _unknown("numbers")
    # In float32 the square of a number above 1.8e19 is infinite, and r2 would be NaN.
    predicted_RN, targets_RN = (np.asarray(numbers, np.float64) for numbers in (predicted_RN, targets_RN))
    return {
        "mse": float(np.square(predicted_RN - targets_RN).mean()),
        "mae": float(np.abs(predicted_RN - targets_RN).mean()),
        "r2": float(r2_score(targets_RN, predicted_RN)) if len(targets_RN) > 1 else math.nan,
    }


def of_boxes(predictions: list[tuple], truths: list[tuple], classes: int) -> dict[str, float]:
    """mAP at IoU 0.5 and its mean over 0.5:0.95, as COCO measures them (pycocotools).

    predictions: (boxes [P 4], classes [P], scores [P]) per picture; truths: (boxes [M 4], classes [M]) likewise; boxes
    are y0 x0 y1 x1 in fractions of the picture.  NaN if there is no true box or a prediction is not finite.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    finite = all(np.isfinite(boxes).all() and np.isfinite(chances).all() for boxes, _, chances in predictions)
    if not finite or not any(len(labels) for _, labels in truths):
        return _unknown("boxes")
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        known = COCO()
        known.dataset = _coco(truths, classes)
        known.createIndex()
        found = known.loadRes(_rows(predictions)) if any(len(each[0]) for each in predictions) else None
        if found is None:
            return {"map50": 0.0, "map": 0.0}
        measure = COCOeval(known, found, "bbox")
        measure.evaluate()
        measure.accumulate()
        measure.summarize()
    return {"map50": float(measure.stats[1]), "map": float(measure.stats[0])}


def _unknown(kind: str) -> dict[str, float]:
    """NaN for every score, as for predictions that are not finite: scores of the others alone would hide them."""
    return dict.fromkeys(NAMES[kind], math.nan)


def _coco(truths: list[tuple], classes: int) -> dict:
    annotations = [
        {"image_id": picture, "category_id": int(label), "bbox": _box(box), "area": _area(box), "iscrowd": 0}
        for picture, (boxes, labels) in enumerate(truths)
        for box, label in zip(boxes, labels, strict=True)
    ]
    return {
        "images": [{"id": picture} for picture in range(len(truths))],
        "categories": [{"id": label} for label in range(classes)],
        "annotations": [{"id": number} | each for number, each in enumerate(annotations, start=1)],
        "info": {},
    }


def _rows(predictions: list[tuple]) -> list[dict]:
    return [
        {"image_id": picture, "category_id": int(label), "bbox": _box(box), "score": float(score)}
        for picture, (boxes, labels, scores) in enumerate(predictions)
        for box, label, score in zip(boxes, labels, scores, strict=True)
    ]


def _box(box) -> list[float]:
    y0, x0, y1, x1 = (float(side) * SIDE for side in box)
    return [x0, y0, x1 - x0, y1 - y0]


def _area(box) -> float:
    return _box(box)[2] * _box(box)[3]
