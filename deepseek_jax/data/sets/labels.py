"""Class numbers for a user's labels."""

import math
from collections.abc import Sequence

import numpy as np

from deepseek_jax.data.plain_text import is_utf8
from deepseek_jax.data.sets.faults import Faults
from deepseek_jax.data.sets.rows import SURROGATE


def numbered_labels(
    faults: Faults, labels: Sequence[tuple[int, object]], column: str, classes: tuple[str, ...], of: str = "record"
) -> tuple[tuple[str, ...], np.ndarray]:
    """(class names, the class number of each label as int32); whole numbers come first, in numeric order.

    labels: (line, label); classes: the permitted ones, () for those that occur; of: what a label belongs to.
    """
    named = [(line, _name(label)) for line, label in labels]
    names = classes or tuple(sorted({label for _, label in named}, key=_number_first))
    number_of = {name: number for number, name in enumerate(names)}
    for (line, label), (_, given) in zip(named, labels, strict=True):
        if isinstance(given, list | dict):  # converted to text, each combination would be a class
            faults.add(line, f"{column} is {given!r}; every {of} has a single label")
        elif isinstance(given, float) and not math.isfinite(given):
            faults.add(line, f"{column} is {given}; correct the record or remove it")
        elif not label:
            faults.add(line, f"{column} is empty; every {of} needs a label")
        elif not is_utf8(label):
            faults.add(line, f"{column} {SURROGATE}")
        elif label not in number_of:
            known = ", ".join(names)
            faults.add(line, f"{column} is {label!r}, which is none of dataset.columns.classes ({known})")
    return names, np.array([number_of.get(label, 0) for _, label in named], np.int32)


def _name(label: object) -> str:
    if isinstance(label, float) and label.is_integer():  # some programs write 1 as 1.0
        label = int(label)
    return "" if label is None else str(label).strip()


def _number_first(name: str) -> tuple:
    """Sort key: whole numbers first, by their digits, as int() refuses numbers with thousands of them."""
    digits = name.lstrip("0")
    return (0, len(digits), digits, name) if name.isdecimal() else (1, 0, "", name)
