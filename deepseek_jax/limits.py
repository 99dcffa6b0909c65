"""Checks that sections of the schema share: each names the key and says what it may be."""

from deepseek_jax.errors import UserError


def choice(key: str, value: str, allowed: tuple[str, ...]):
    if value not in allowed:
        raise UserError(f"{key} is {value!r}; choose one of {', '.join(allowed)}.")


def at_least(section: str, config, low: float, *names: str):
    for name in names:
        if getattr(config, name) < low:
            raise UserError(f"{section}.{name} is {getattr(config, name)}; it must be at least {low}.")


def fraction(section: str, config, *names: str):
    for name in names:
        if not 0 <= getattr(config, name) <= 1:
            raise UserError(f"{section}.{name} is {getattr(config, name)}; it must lie between 0 and 1.")
