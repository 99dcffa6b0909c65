"""Modules of a user that an experiment names: they add parts to the package's tables when they are imported.

config.json of a run names them too, so every verb that reads the run imports them before it checks the settings, among
which are those of the parts (part_settings.py).
"""

import contextlib
import importlib
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from deepseek_jax.errors import UserError

CHANGE = "change_program"  # a module's function of this name is given each experiment's program, and returns another


def load(names: Sequence[str], origin: str):
    """Imports the modules `names` from the current directory or from where Python finds modules.

    UserError, naming `origin`, if there is no such module; with file and line if it cannot be imported.
    """
    for name in names:
        if not all(part.isidentifier() for part in name.split(".")) or name.endswith(".py"):
            raise UserError(
                f"plugins has {name!r} in {origin}; name a module as `import` does: parts.gated for the file "
                "parts/gated.py."
            )
        if name not in sys.modules:
            _load(name, origin)


def _load(name: str, origin: str):
    importlib.invalidate_caches()  # the file may be newer than Python's list of its directory
    try:
        with importable(Path.cwd()):
            importlib.import_module(name)
    except UserError as error:
        raise UserError(f"the plugin {name}: {error}") from error
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise UserError(f"the plugin {name} of {origin} cannot be imported: {_where(error)}") from error
        raise UserError(
            f"{origin} names the plugin {name}, and there is no module {error.name}, neither in {Path.cwd()} nor where "
            "Python finds modules; run this where it is, or add its directory to PYTHONPATH."
        ) from None
    except Exception as error:
        raise UserError(f"the plugin {name} of {origin} cannot be imported: {_where(error)}") from error


def _where(error: Exception) -> str:
    """The error in a sentence, with the innermost place that is not inside of Python's import system."""
    said = f"{type(error).__name__}: {str(error).rstrip('.')}."
    if isinstance(error, SyntaxError):
        return f"{error.filename} line {error.lineno}: {error.msg}."
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
    inside = [frame for frame in frames if frame.filename != __file__]
    return f"{inside[-1].filename} line {inside[-1].lineno}: {said}" if inside else said


def changes(names: Sequence[str]) -> list[Callable]:
    """The functions by which these modules change an experiment's program."""
    load(names, "an experiment")  # of a script's own making
    modules = [sys.modules[name] for name in names]
    return [getattr(module, CHANGE) for module in modules if hasattr(module, CHANGE)]


def sources(names: Sequence[str]) -> list[Path]:
    """The files of these modules, which have been loaded; of a package all that are in its directory."""
    found = []
    for module in (sys.modules[name] for name in names):
        folders = getattr(module, "__path__", None)
        if folders is None:
            found += [Path(module.__file__)] if getattr(module, "__file__", None) else []
        else:
            found += sorted(path for folder in folders for path in Path(folder).rglob("*.py"))
    return found


@contextlib.contextmanager
def importable(*folders: Path) -> Iterator[None]:
    """A context in which modules are also found in `folders`, and there first."""
    sys.path[:0] = map(str, folders)
    try:
        yield
    finally:
        for folder in folders:
            sys.path.remove(str(folder))
