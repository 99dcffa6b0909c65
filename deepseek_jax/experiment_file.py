"""From a configs/*.py and `key=value` overrides to a checked Experiment."""

import contextlib
import importlib.machinery
import importlib.util
import re
import traceback
import types
from collections.abc import Mapping
from pathlib import Path

from ml_collections import ConfigDict

from deepseek_jax import fields
from deepseek_jax.config import AnyExperiment, SupervisedExperiment, default_config, give_settings
from deepseek_jax.errors import UserError
from deepseek_jax.plugins import importable


def resolve(path: str | None, overrides: Mapping[str, object] = {}) -> AnyExperiment:
    """The experiment of the config file `path` (None: the defaults) with `overrides` on top: dotted key to value.

    Overrides are applied after `get_config()` has run, so values that the file computes from an overridden key do not
    change with it, unless the file links them with `config.get_ref`.
    """
    config = load(path) if path is not None else default_config()
    override(config, overrides, origin=path or "an experiment")
    return fields.build(config.to_dict(), origin=path or "an experiment")


def of_set(name: str, overrides: Mapping[str, object]) -> SupervisedExperiment:
    """The default experiment on the labelled set `name`, with `overrides` on top, such as a file's dataset.columns."""
    config, origin = default_config("supervised"), "a labelled set"
    override(config, {"dataset.name": name, **overrides}, origin)
    return fields.build(config.to_dict(), origin)


def load(path: str) -> ConfigDict:
    """What `get_config()` of the Python file at `path` returns; UserError with file and line if that fails."""
    if not Path(path).is_file():
        if Path(path).is_dir():
            raise UserError(f"{path} is a directory; a config is a .py file with a get_config() function.")
        raise UserError(f"there is no config file {path}.")
    if Path(path).suffix != ".py":
        raise UserError(f"{path} is not a Python file; a config is a .py file with a get_config() function.")
    # So configs/a.py can say `from configs import b` wherever the command is run.
    with explained(path), importable(Path(path).resolve().parent.parent):
        module = execute(f"config file {path}", path)
        if not hasattr(module, "get_config"):
            raise UserError(f"{path} has no function get_config().")
        config = module.get_config()
    given = fields.flatten(config.to_dict()) if isinstance(config, ConfigDict) else {}
    family = given.get("family", "language_model")
    fields.check_family(family, str(path))
    if missing := fields.leaf_types(family).keys() - given:
        raise UserError(
            f"get_config() of {path} must change and return deepseek_jax.config.default_config(); "
            f"what it returns lacks {min(missing)}."
        )
    return config


def override(config: ConfigDict, overrides: Mapping[str, object], origin: str):
    """Sets dotted keys of `config` in place, parsing values given as text; errors name `origin`."""
    family = config.family
    config.plugins = _value("plugins", overrides.get("plugins", config.plugins), tuple[str, ...])
    give_settings(config, origin)  # first, as it decides which keys there are
    known_keys = fields.leaf_types(family, config.plugins)
    for key, value in overrides.items():
        if key not in known_keys:
            inside = [known for known in known_keys if known.startswith(key + ".")]
            if inside:
                raise UserError(f"{key} is a section of {origin}; set one of its keys, such as {inside[0]}.")
            raise UserError(f"{origin} has no key {key}{fields.nearest(key, known_keys)}")
        section, _, name = key.rpartition(".")
        if key == "family":
            raise UserError(
                f"{key} is {family} in {origin}, which decides what can be set; give a config of another family."
            )
        node = config
        for part in filter(None, section.split(".")):
            node = node[part]
        node[name] = _value(key, value, known_keys[key])


def _value(key: str, value: object, kind: type) -> object:
    return fields.parse(key, value, kind) if isinstance(value, str) else fields.convert(key, value, kind)


def execute(name: str, path: str | Path) -> types.ModuleType:
    """Runs the Python file at `path` as a module called `name` and returns it."""
    loader = _FromSource(name, str(path))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(name, loader))
    loader.exec_module(module)
    return module


class _FromSource(importlib.machinery.SourceFileLoader):
    """Neither reads nor writes bytecode, which after a change within the same second would count as up to date."""

    def get_code(self, fullname: str) -> types.CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


@contextlib.contextmanager
def explained(path: str):
    """Turns any error in the config file into a UserError of one sentence with the line of that file."""
    try:
        yield
    except UserError:
        raise
    except SyntaxError as error:
        raise UserError(f"{error.filename} line {error.lineno}: {error.msg}.") from error
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        inside = [frame for frame in frames if Path(frame.filename).resolve() == Path(path).resolve()]
        place, line = (f"{path} line {inside[-1].lineno}", inside[-1].line) if inside else (path, "")
        raise UserError(f"{place}: {_sentence(error, line)}") from error


OTHER_TYPE = re.compile(
    r"Could not override field '(\w+)' \(reference\)\. (.*) is of original type <class '([\w.]+)'> "
    r"and cannot be casted to type <class '([\w.]+)'>",
    re.DOTALL,
)


def _sentence(error: Exception, line: str) -> str:
    """An error of ml_collections about a key or a value, in the words used for overrides on the command line.

    For an unknown key ml_collections lists all fields; this names the nearest one instead.  `line`: where it came up.
    """
    if isinstance(error, AttributeError) and (own := re.search(r"\bparts\.\w+(\.\w+)?", line)):
        return f"there is no key {own[0]}{fields.nearest(own[0])}"
    unknown = re.search(r'Key "(.+?)" does not exist', str(error))
    if unknown:
        return f"there is no key {unknown[1]}{fields.nearest(unknown[1])}"
    if other := OTHER_TYPE.fullmatch(str(error)):
        name, value, given, expected = other.groups()
        return fields.wrong_type(name, repr(value) if given == "str" else " ".join(value.split()), expected)
    return f"{type(error).__name__}: {str(error).rstrip('.')}."
