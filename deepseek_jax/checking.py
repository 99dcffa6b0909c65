"""Checks of settings, each with the sentence that a user reads: what is wrong, and what would be right."""

import functools
import math
import re
from collections.abc import Collection

from deepseek_jax.errors import UserError

MOST = 2**31 - 1  # largest whole number: jax counts in 32 bits
MOST_NEW_TOKENS = 10**9  # with their prompt they must stay below MOST


def choice(key: str, value: str, allowed: Collection[str], more: str = ""):
    """Raises UserError unless `value` of the setting `key` is one of `allowed`; `more` ends its list of them."""
    if value not in allowed:
        raise UserError(f"{key} is {value!r}; choose one of {', '.join(allowed)}{more}.")


def require_family(wanted: str, family: str, where, instead: str):
    """Raises UserError unless the model of the config file or directory `where` is of the `wanted` family."""
    if family != wanted:
        what = {"language_model": "a language model", "supervised": "a hybrid network"}[family]
        raise UserError(f"{where} has {what}; {instead}.")


def at_least(section: str, config, low: float, *names: str):
    """Raises UserError for the first of these fields of `config`, a section of settings, that is below `low`.

    Also raises it for whole numbers above MOST.
    """
    for name in names:
        value = getattr(config, name)
        if value < low:
            raise UserError(f"{section}.{name} is {value}; it must be at least {low}.")
        if isinstance(value, int) and value > MOST:
            raise UserError(f"{section}.{name} is {value}; it must be at most {MOST}.")


def fraction(section: str, config, *names: str):
    """Raises UserError for the first of these fields that does not lie between 0 and 1."""
    for name in names:
        if not 0 <= getattr(config, name) <= 1:
            raise UserError(f"{section}.{name} is {getattr(config, name)}; it must lie between 0 and 1.")


def pattern(key: str, value: str):
    """Raises UserError unless `value` of the setting `key` is a regular expression."""
    try:
        re.compile(value)
    except re.error as error:
        raise UserError(f"{key} is {value!r}, which is not a regular expression: {error}.") from None


@functools.cache
def parameter_group(group: str) -> tuple[re.Pattern, dict[str, float]]:
    """Parses an entry of optimizer.groups: (pattern, {"lr": factor, "decay": factor}), without factors not given."""
    try:
        pattern, *settings = group.split()
        given = {name: float(value) for name, value in (setting.split("=") for setting in settings)}
        if not given or set(given) - {"lr", "decay"} or not all(0 <= factor < math.inf for factor in given.values()):
            raise ValueError
        return re.compile(pattern), given
    except (ValueError, re.error):
        raise UserError(
            f"optimizer.groups has {group!r}; write a regular expression and factors, as in 'head lr=10 decay=0'."
        ) from None
