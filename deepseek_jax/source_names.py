"""Names of a user's functions in what is stored: functions that compute differently differ in name."""

import hashlib
import inspect
import pprint
import re
import sys
from collections.abc import Callable

import numpy as np

from deepseek_jax.errors import UserError


def source_name(function: Callable) -> str:
    """The function's name and a hash of its source and of the values that it captures.

    So a result of an older version, or of another function from the same factory, is not mistaken for its own.
    UserError for a lambda or anything else not made by `def`, for one without a readable source, and for a captured
    value whose text differs by process.
    """
    if not inspect.isfunction(function) or function.__name__ == "<lambda>":
        raise UserError(
            f"edits and measures of studies, and changes of programs, must be functions defined with `def`, but one is "
            f"{function!r}."
        )
    return f"{function.__name__}-{hashlib.sha256(_written(function, ()).encode()).hexdigest()[:8]}"


def _written(function: Callable, outer: tuple) -> str:
    """Source, captured variables and defaults, as text.  `outer`: the chain of functions that led to this one."""
    outer += (function,)
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    held = {name: cell.cell_contents for name, cell in cells} | (function.__kwdefaults__ or {})
    held |= dict(enumerate(function.__defaults__ or ()))
    written = [f"{name}={_value(value, outer)}" for name, value in held.items()]
    return "\n".join([_source(function), *written])


def _source(function: Callable) -> str:
    try:
        return inspect.getsource(function)
    except OSError:
        raise UserError(
            f"{function.__name__} is known by its source, which cannot be read; define it in a file or a notebook."
        ) from None


def _value(value: object, outer: tuple) -> str:
    if inspect.isfunction(value):
        return value.__name__ if any(value is each for each in outer) else _written(value, outer)
    with np.printoptions(threshold=sys.maxsize, floatmode="unique"):
        text = pprint.pformat(value, width=1)  # sorts sets, as it does not if they fit on a line
    if re.search(r" at 0x[0-9a-f]", text):
        raise UserError(f"{outer[0].__name__} uses {text}, which differs between processes; give it numbers or text.")
    return text
