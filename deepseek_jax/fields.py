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
from collections.abc import Collection, Iterable, Iterator, Mapping

from deepseek_jax import part_settings, plugins
from deepseek_jax.config import FAMILIES, AnyExperiment, plain
from deepseek_jax.errors import UserError

WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
EXPECTED = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text", dict: "an object"}


def leaf_types(family: str, modules: Collection[str] = ()) -> dict[str, type]:
    """Every key of an experiment with its type, in the order of the schema; `modules`: its plugins, already loaded."""
    return _of_family(family) | _of_parts(part_settings.added_by(modules))


@functools.cache
def _of_family(family: str) -> dict[str, type]:
    return dict(_leaves(FAMILIES[family], ""))


def _of_parts(names: Iterable[str]) -> dict[str, type]:
    return dict(_leaves(part_settings.section(names), "parts."))


def _of_all() -> dict[str, type]:
    """The keys of all families and of all parts that have been added."""
    found = _of_parts(part_settings.SETTINGS)
    for family in FAMILIES:
        found |= _of_family(family)
    return found


def _leaves(section: type, prefix: str) -> Iterator[tuple[str, type]]:
    for name, kind in typing.get_type_hints(section).items():
        if dataclasses.is_dataclass(kind):
            yield from _leaves(kind, f"{prefix}{name}.")
        else:
            yield prefix + name, kind


def shown(value: object) -> object:
    """The value of a setting for a sentence or table, where nothing must not look like a gap."""
    return "empty" if value in ("", (), []) else value


def flatten(values: Mapping, prefix: str = "") -> dict[str, object]:
    """{"train": {"steps": 3}} as {"train.steps": 3}."""
    flat = {}
    for name, value in values.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def nearest(key: str, known_keys: Collection[str] | None = None) -> str:
    """The end of a message about an unknown key: suggests the most similar known one, if any is similar enough.

    `known_keys`: None for those of all families and parts.
    """
    known_keys = _of_all() if known_keys is None else known_keys
    if of_part := key.startswith("parts."):  # other keys, and those of other parts, resemble it by chance only
        names = {known.split(".")[1] for known in known_keys if known.startswith("parts.")}
        part = difflib.get_close_matches(key.split(".")[1], names, n=1)
        known_keys = [known for known in known_keys if known.split(".")[:2] == ["parts", *part]]

    def likeness(known: str) -> float:
        pairs = (key, known), (key.rpartition(".")[2], known.rpartition(".")[2])
        return sum(difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)

    best = max(known_keys, key=likeness, default=None)
    if best is not None and likeness(best) > 1.1:
        return f"; did you mean {best}?"
    if of_part and known_keys:
        return f"; choose one of {', '.join(sorted(known_keys))}."
    if of_part:
        return "; name the module that adds this part in `plugins` (in a config file: add_plugins(config, MODULE))."
    return "."


def parse(key: str, text: str, kind: type) -> object:
    """Parses `text`, from a command line, as a value of the type `kind` for `key`; UserError if it is not one."""
    if typing.get_origin(kind) is tuple:
        inside = _without_parentheses(text.strip())
        item = typing.get_args(kind)[0]
        return tuple(parse(key, part.strip(), item) for part in inside.removesuffix(",").split(",") if inside)
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
    keys = {key for key in _of_all() if key.rpartition(".")[2] == name}
    (key,) = keys if len(keys) == 1 else (name,)
    expected = {each.__name__: words for each, words in EXPECTED.items()} | {"tuple": "a list"}
    return f"{key} is {value}; it must be {expected.get(kind.rpartition('.')[2], 'a section of settings')}."


def build(values: Mapping, origin: str) -> AnyExperiment:
    """The checked experiment of nested `values`; absent keys take their defaults.  Imports its plugins first.

    Raises UserError naming `origin` (a file) for an unknown key, and naming the key for a value that does not fit.
    """
    family = values.get("family", "language_model")
    check_family(family, origin)
    modules = convert("plugins", values.get("plugins", ()), tuple[str, ...])
    plugins.load(modules, origin)
    _check_keys(values, leaf_types(family, modules), origin)
    parts = build_parts(values.get("parts", {}), part_settings.added_by(modules), origin)
    return build_section(FAMILIES[family], {**values, "parts": parts}, "")


def build_parts(values: object, names: Collection[str], origin: str) -> part_settings.Parts:
    """The checked settings of the parts `names`, from those in `values`; errors as those of `build`."""
    _check_keys({"parts": values}, _of_parts(names), origin)
    try:
        return build_section(part_settings.section(names), values, "parts.")
    except UserError:
        raise
    except ValueError as error:  # from a part's own checks
        raise UserError(f"{origin}: {error}") from error


def check_defaults(settings: type, where: str):
    """UserError, naming `where`, unless this dataclass has a default of an allowed type for each setting."""
    try:
        defaults = settings()
        hash(defaults)
    except TypeError as error:
        raise UserError(f"{where}, need a default for each field, which cannot be changed: {error}.") from error
    given = flatten(dataclasses.asdict(defaults))
    for key, kind in _leaves(settings, ""):
        item = typing.get_args(kind)[0] if typing.get_origin(kind) is tuple else kind
        if item not in (int, float, bool, str):
            raise UserError(f"{where}, have {key} of type {kind}; use int, float, bool, str, or tuple[int, ...].")
        if convert(f"{where}: {key}", given[key], kind) is not given[key] and kind is float:
            raise UserError(f"{where}, have {key} of type float with the default {given[key]}; write {given[key]}.0.")


def _check_keys(values: Mapping, known_keys: Collection[str], origin: str):
    for key, value in flatten(values).items():
        if key in known_keys:
            continue
        if any(known.startswith(f"{key}.") for known in known_keys):
            raise UserError(_wrong(key, value, dict))
        raise UserError(f"{origin} sets an unknown key, {key}{nearest(key, known_keys)}")


def check_family(family: object, origin: str):
    if family not in FAMILIES:
        raise UserError(f"{origin} is of the family {family!r}; choose one of {', '.join(FAMILIES)}.")


def checked(experiment: AnyExperiment) -> AnyExperiment:
    """`experiment`, validated like one from a file: a program may have put values of any type into it."""
    if not isinstance(experiment, tuple(FAMILIES.values())):
        raise UserError(
            f"this is a {type(experiment).__name__}, not an experiment; deepseek_jax.resolve makes one of a config "
            "file and overrides, fields.build one of nested dicts."
        )
    found = build(plain(experiment), "an experiment")
    given, kept = ([getattr(each, "parts", None) for each in (its.model, its.optimizer)] for its in (experiment, found))
    if given != kept:
        raise UserError(
            "model.parts or optimizer.parts differs from the experiment's `parts`, which decides; it has the settings "
            "of parts whose dataclass is in a module that `plugins` names."
        )
    return found


def build_section(section: type, values: Mapping, prefix: str):
    """A dataclass of the schema from nested `values`, whose keys begin with `prefix` in messages."""
    fields = {}
    for name, kind in typing.get_type_hints(section).items():
        if name not in values:
            continue
        if isinstance(values[name], part_settings.Parts):  # built already
            fields[name] = values[name]
        elif dataclasses.is_dataclass(kind):
            if not isinstance(values[name], Mapping):
                raise UserError(_wrong(prefix + name, values[name], dict))
            fields[name] = build_section(kind, values[name], f"{prefix}{name}.")
        else:
            fields[name] = convert(prefix + name, values[name], kind)
    return section(**fields)
