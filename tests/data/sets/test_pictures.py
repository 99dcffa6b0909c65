"""Figures that show records of a set."""

import numpy as np
import pytest

from deepseek_jax.data.sets import pictures

PRICES = ("$10_$20", "under $10")  # the first would be an invalid mathtext formula


@pytest.mark.parametrize(
    "answers",
    [
        {"labels": np.array([[1.0, 0.0]])},
        {"boxes": np.array([[[0.1, 0.1, 0.5, 0.5]]]), "box_labels": np.array([[0]])},
    ],
)
def test_class_names_are_not_parsed_as_formulas(answers):
    assert pictures.grid({"train": {"inputs": np.zeros((1, 16, 16, 1))} | answers}, PRICES).startswith(b"\x89PNG")


@pytest.mark.parametrize("count", [1, 3])
def test_one_or_several_windows_are_drawn(count):
    assert pictures.curves(np.zeros((count, 8, 1)), np.zeros((count, 2))).startswith(b"\x89PNG")
