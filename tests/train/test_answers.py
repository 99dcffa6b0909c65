"""Figures that compare answers with the truth, for class names and sizes that matplotlib might trip over."""

import io
import types

import numpy as np
from matplotlib.colors import to_rgb
from PIL import Image

from deepseek_jax.data.sets import pictures
from deepseek_jax.figures import INK, ORANGE
from deepseek_jax.train.supervised import answers

PRICES = ("$10_$20", "under $10", "$5%^$6")  # two would be invalid as mathtext formulas
PNG = b"\x89PNG"


def test_class_names_with_dollar_signs_are_not_parsed_as_formulas():
    assert answers.confusion(np.eye(3, dtype=int), PRICES).startswith(PNG)
    here = np.array([[[0.1, 0.1, 0.5, 0.5]]])
    found = {"boxes": here, "box_labels": np.array([[0]]), "answer": (here, np.array([[2]]), np.array([[0.9]]))}
    assert answers.boxes(np.zeros((1, 16, 16, 1)), found, PRICES).startswith(PNG)


def test_of_many_classes_those_with_the_most_mistakes_are_shown():
    matrix = 9 * np.eye(300, dtype=int)
    matrix[7, 250], matrix[123, 4] = 3, 1
    shown = answers.most_mistaken(matrix)
    assert len(shown) == answers.SHOWN_CLASSES and {4, 7, 123, 250} < set(shown)
    height, width = (
        int.from_bytes(answers.confusion(matrix, tuple(map(str, range(300))))[at : at + 4]) for at in (20, 16)
    )
    assert max(height, width) < 3000
    assert answers.most_mistaken(matrix[:3, :3]).tolist() == [0, 1, 2]


def painted(png: bytes, colour: str) -> int:
    """The number of pixels of roughly this colour in a PNG picture."""
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), int)
    return int((np.abs(pixels - 255 * np.array(to_rgb(colour))).max(-1) < 32).sum())


def test_a_forecast_of_a_single_step_is_visible():
    """Compared with the figure of a forecast without values, in which only the legend has the colours."""
    of_series, changes = types.SimpleNamespace(season=1), np.sin(np.arange(60.0))[:, None]
    drawn, empty = (answers.numbers(values, values + 1, of_series) for values in (changes, np.full((60, 1), np.nan)))
    assert all(painted(drawn, colour) > painted(empty, colour) + 500 for colour in (INK, ORANGE))
    assert painted(pictures.curves(changes[None, :8], changes[:1, :1] - 2), ORANGE) > 20
