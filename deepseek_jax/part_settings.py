"""Settings of the parts that plugins add.  An experiment has them in the section `parts`, under the name of each part.

The sections in which parts are named (model, data, dataset, optimizer) get the settings of those that they name, so
that whatever is made of a ModelConfig alone has them too.  They are stored once: `config.plain` leaves the copies out.
"""

import dataclasses
import functools
from collections.abc import Collection, Iterable

SETTINGS: dict[str, type] = {}  # part -> the dataclass of its settings; filled by parts.py


@dataclasses.dataclass(frozen=True)
class Parts:
    """The settings of some parts, each in a field that is named as the part; here of none (see `section`)."""


def section(names: Iterable[str]) -> type[Parts]:
    """The dataclass that has the settings of those of the parts `names` which have any, with their defaults."""
    return _section(tuple((name, SETTINGS[name]) for name in sorted(SETTINGS.keys() & set(names))))


@functools.cache
def _section(fields: tuple[tuple[str, type], ...]) -> type[Parts]:
    with_defaults = [(name, kind, kind()) for name, kind in fields]
    return dataclasses.make_dataclass("Parts", with_defaults, bases=(Parts,), frozen=True) if fields else Parts


def added_by(modules: Collection[str]) -> list[str]:
    """The parts whose settings are defined in one of these modules, or inside of it if it is a package."""
    return [
        name
        for name, kind in SETTINGS.items()
        if any(f"{kind.__module__}.".startswith(f"{module}.") for module in modules)
    ]


def of(names: Iterable[str], *known: Parts) -> Parts:
    """The settings of the parts `names`: as the last of `known` that has them says, or else their defaults."""
    given = {name: value for parts in known for name, value in vars(parts).items()}
    kind = section(names)
    return kind(**{name: value for name, value in given.items() if name in kind.__dataclass_fields__})


def hand_over(config, *sections: str):
    """Gives these sections of `config` its settings of parts, of which each keeps those of the parts that it names."""
    if config.parts == Parts():
        return
    for name in sections:
        inner = getattr(config, name)
        parts = of(SETTINGS, inner.parts, config.parts)
        object.__setattr__(config, name, dataclasses.replace(inner, parts=parts))
