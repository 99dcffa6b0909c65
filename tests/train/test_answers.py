"""Pictures of answers, whatever the classes are called."""

import numpy as np

from deepseek_jax.train import answers

PRICES = ("$10_$20", "under $10", "$5%^$6")  # as formulas, two of them are broken
PNG = b"\x89PNG"


def test_names_of_classes_are_no_formulas():
    assert answers.confusion(np.eye(3, dtype=int), PRICES).startswith(PNG)
    here = np.array([[[0.1, 0.1, 0.5, 0.5]]])
    found = {"boxes": here, "box_labels": np.array([[0]]), "answer": (here, np.array([[2]]), np.array([[0.9]]))}
    assert answers.boxes(np.zeros((1, 16, 16, 1)), found, PRICES).startswith(PNG)
