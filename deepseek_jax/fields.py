"""The schema as dotted keys: which exist, what type each has, and how text and other values are converted to it.

A key is the path of a field of an experiment: "optimizer.schedule.name".  Types are int, float, bool, str and
tuple[T, ...] of these; anything else in the schema is a section.  Each family of experiments has a schema of its own.
"""

import dataclasses
import difflib
import functools
import itertools
import math
import typing
from collections.abc import Iterator, Mapping

from deepseek_jax import plugins
from deepseek_jax.config import FAMILIES, AnyExperiment
from deepseek_jax.errors import UserError

WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
EXPECTED = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text", dict: "an object"}


@functools.cache
def leaf_types(family: str) -> dict[str, type]:
    """Every key of an experiment with its type, in the order of the schema."""
    return dict(_leaves(FAMILIES[family], ""))


def _leaves(section: type, prefix: str) -> Iterator[tuple[str, type]]:
    for name, kind in typing.get_type_hints(section).items():
        if dataclasses.is_dataclass(kind):
            yield from _leaves(kind, f"{prefix}{name}.")
        else:
            yield prefix + name, kind


def flatten(values: Mapping, prefix: str = "") -> dict[str, object]:
    """{"train": {"steps": 3}} as {"train.steps": 3}."""
    flat = {}
    for name, value in values.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def nearest(key: str, *families: str) -> str:
    """The end of a message about an unknown key: suggests the most similar known one, if any is similar enough."""

    def likeness(known: str) -> float:
        pairs = (key, known), (key.rpartition(".")[2], known.rpartition(".")[2])
        return sum(difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)

    best = max((known for family in families for known in leaf_types(family)), key=likeness)
    return f"; did you mean {best}?" if likeness(best) > 1.1 else "."


def parse(key: str, text: str, family: str) -> object:
    """Parses `text`, from a command line, as a value of the known key `key`; UserError if it is not one."""
    return _parse(key, text, leaf_types(family)[key])


def _parse(key: str, text: str, kind: type) -> object:
    if typing.get_origin(kind) is tuple:
        inside = _without_parentheses(text.strip())
        item = typing.get_args(kind)[0]
        return tuple(_parse(key, part.strip(), item) for part in inside.removesuffix(",").split(",") if inside)
    if kind is bool:
        return convert(key, WORDS.get(text.lower(), text), bool)
    try:
        return convert(key, kind(text), kind)
    except ValueError:
        raise UserError(_wrong(key, text, kind)) from None


def _without_parentheses(text: str) -> str:
    """
    >>> [_without_parentheses(text) for text in ("(0.5, 1)", "(head|norm) lr=10", "(a) lr=1,(b)")]
    ['0.5, 1', '(head|norm) lr=10', '(a) lr=1,(b)']
    """
    depths = list(itertools.accumulate((char == "(") - (char == ")") for char in text))
    enclosed = text.startswith("(") and 0 in depths and depths.index(0) == len(text) - 1
    return text[1:-1].strip() if enclosed else text


def convert(key: str, value: object, kind: type) -> object:
    """`value` as `kind` where nothing is lost (an int for a float, a list for a tuple), else UserError naming `key`."""
    if typing.get_origin(kind) is tuple and isinstance(value, tuple | list):
        return tuple(convert(key, item, typing.get_args(kind)[0]) for item in value)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        raise UserError(_wrong(key, value, kind))
    return value


def _wrong(key: str, value: object, kind: type) -> str:
    many = typing.get_origin(kind) is tuple
    expected = f"a list of {typing.get_args(kind)[0].__name__}" if many else EXPECTED[kind]
    return f"{key} is {value!r}; it must be {expected}."


def wrong_type(name: str, value: str, kind: str) -> str:
    """A message about a value, as written, of another type than the one named `kind`; `name`: last part of its key."""
    keys = {key for family in FAMILIES for key in leaf_types(family) if key.rpartition(".")[2] == name}
    (key,) = keys if len(keys) == 1 else (name,)
    expected = {each.__name__: words for each, words in EXPECTED.items()} | {"tuple": "a list"}
    return f"{key} is {value}; it must be {expected.get(kind.rpartition('.')[2], 'a section of settings')}."


def build(values: Mapping, origin: str) -> AnyExperiment:
    """The checked experiment of nested `values`; absent keys take their defaults.  Imports its plugins first.

    Raises UserError naming `origin` (a file) for an unknown key, and naming the key for a value that does not fit.
    """
    family = values.get("family", "language_model")
    check_family(family, origin)
    for key in flatten(values):
        if key not in leaf_types(family):
            raise UserError(f"{origin} sets an unknown key, {key}{nearest(key, family)}")
    plugins.load(convert("plugins", values.get("plugins", ()), leaf_types(family)["plugins"]), origin)
    return build_section(FAMILIES[family], values, "")


def check_family(family: object, origin: str):
    if family not in FAMILIES:
        raise UserError(f"{origin} is of the family {family!r}; choose one of {', '.join(FAMILIES)}.")


def checked(experiment: AnyExperiment) -> AnyExperiment:
    """`experiment`, validated like one from a file: a program may have put values of any type into it."""
    if not isinstance(experiment, tuple(FAMILIES.values())):
        raise UserError(
            f"this is a {type(experiment).__name__}, not an experiment; experiment_file.resolve makes one of a config "
            "file and overrides, fields.build one of nested dicts."
        )
    return build(dataclasses.asdict(experiment), "an experiment")


def build_section(section: type, values: Mapping, prefix: str):
    """A dataclass of the schema from nested `values`, whose keys begin with `prefix` in messages."""
    fields = {}
    for name, kind in typing.get_type_hints(section).items():
        if name not in values:
            continue
        if dataclasses.is_dataclass(kind):
            if not isinstance(values[name], Mapping):
                raise UserError(_wrong(prefix + name, values[name], dict))
            fields[name] = build_section(kind, values[name], f"{prefix}{name}.")
        else:
            fields[name] = convert(prefix + name, values[name], kind)
    return section(**fields)
