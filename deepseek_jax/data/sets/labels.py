"""Class numbers for a user's labels."""

import math
from collections.abc import Sequence

import numpy as np

from deepseek_jax.data.plain_text import is_utf8
from deepseek_jax.data.sets.faults import Faults
from deepseek_jax.data.sets.rows import NOT_UTF8, SURROGATE, decoded, shown


def numbered_labels(
    faults: Faults,
    labels: Sequence[tuple[int, object]],
    column: str,
    classes: tuple[str, ...],
    stored: tuple[str, ...] = (),
    of: str = "record",
) -> tuple[tuple[str, ...], np.ndarray]:
    """(class names, the class number of each label as int32); whole numbers come first, in numeric order.

    labels: (line, label); classes: the permitted ones, () for those that occur; stored: the names of labels that are
    numbers, in whose order the classes then are; of: what a label belongs to.
    """
    named = [(line, _name(_in_words(label, stored))) for line, label in labels]
    place_of = {name: place for place, name in enumerate(stored)}
    occurring = sorted({label for _, label in named}, key=_number_first)
    names = classes or tuple(sorted(occurring, key=lambda name: place_of.get(name, len(stored))))
    number_of = {name: number for number, name in enumerate(names)}
    for (line, label), (_, given) in zip(named, labels, strict=True):
        if isinstance(given, list | dict):  # converted to text, each combination would be a class
            faults.add(line, f"{column} is {shown(given)}; every {of} has a single label")
        elif isinstance(given, float) and not math.isfinite(given):
            faults.add(line, f"{column} is {given}; correct the record or remove it")
        elif not label:
            faults.add(line, f"{column} is empty; every {of} needs a label")
        elif not is_utf8(label):
            faults.add(line, f"{column} {NOT_UTF8 if isinstance(given, bytes) else SURROGATE}")
        elif stored and label not in place_of:
            faults.add(line, f"{column} is {label}; the file names the classes 0 to {len(stored) - 1}, and no other")
        elif label not in number_of:
            known = ", ".join(names)
            faults.add(line, f"{column} is {label!r}, which is none of dataset.columns.classes ({known})")
    return names, np.array([number_of.get(label, 0) for _, label in named], np.int32)


def _in_words(label: object, stored: tuple[str, ...]) -> object:
    """A number that stands for a name as that name, and bytes as text; anything else as it is."""
    if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < len(stored):
        return stored[label]
    return decoded(label)


def _name(label: object) -> str:
    if isinstance(label, float) and label.is_integer():  # some programs write 1 as 1.0
        label = int(label)
    return "" if label is None else str(label).strip()


def _number_first(name: str) -> tuple:
    """Sort key: whole numbers first, by their digits, as int() refuses numbers with thousands of them."""
    digits = name.lstrip("0")
    return (0, len(digits), digits, name) if name.isdecimal() else (1, 0, "", name)
