"""What a check found, in a form that the page, the terminal and the filter list are all made from."""

import dataclasses
from collections.abc import Iterable

Shown = tuple[int, str]  # the place of a record, and what stands above it


@dataclasses.dataclass(frozen=True)
class Finding:
    """`sentence` says it in words and numbers.

    heads, rows: a table.  examples: rows of records by name; where there are two rows, those above each other belong
    together.  doubtful: place -> reason, records that training should leave out; for a person to judge where
    `certain` is false: they stand in the filter list as comments.  kept: place -> the equal record that training keeps;
    where another finding leaves that one out, its copy is for a person to judge too.
    """

    title: str
    sentence: str
    heads: tuple[str, ...] = ()
    rows: tuple[Iterable, ...] = ()
    examples: dict[str, list[Shown]] = dataclasses.field(default_factory=dict)
    doubtful: dict[int, str] = dataclasses.field(default_factory=dict)
    certain: bool = True
    kept: dict[int, int] = dataclasses.field(default_factory=dict)
