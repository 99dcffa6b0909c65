"""The result of a check, from which the page, the terminal output and the filter list are all made."""

import dataclasses
from collections.abc import Iterable

Shown = tuple[int, str]  # the place of a record, and its caption


@dataclasses.dataclass(frozen=True)
class Finding:
    """`sentence` states it in words and numbers.

    heads, rows: a table.  examples: rows of records by name; two rows are aligned, record by record.  doubtful:
    place -> reason, for records that training should leave out; if `certain` is false, the filter list has them only
    as comments, for the user to judge.  kept: place -> the copy that training keeps instead; if another finding leaves
    that one out, this one too becomes a comment.
    """

    title: str
    sentence: str
    heads: tuple[str, ...] = ()
    rows: tuple[Iterable, ...] = ()
    examples: dict[str, list[Shown]] = dataclasses.field(default_factory=dict)
    doubtful: dict[int, str] = dataclasses.field(default_factory=dict)
    certain: bool = True
    kept: dict[int, int] = dataclasses.field(default_factory=dict)
