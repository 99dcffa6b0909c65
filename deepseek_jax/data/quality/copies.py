"""Which records are copies of each other, in any splits: equal ones by a hash of their content, near ones by a search
for their kind of input, and texts also if their first tokens, all that a model sees, are equal."""

import collections
import dataclasses
from collections.abc import Iterable

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from deepseek_jax.data.quality import near_texts, near_vectors
from deepseek_jax.data.quality.all_records import AllRecords
from deepseek_jax.data.sets.scaling import moments
from deepseek_jax.data.sets.splitting import content_keys
from deepseek_jax.reporting import Report, no_report

EQUAL, NEAR = "equal", "nearly equal"
FEW = 0.1  # share of a table's rows; if more repeat others, repetition is taken to be normal in this table


@dataclasses.dataclass(frozen=True)
class Copies:
    """Arrays of group numbers.  content [N]: the same for equal records; seen [N]: the same for records that look equal
    to a model, which reads only the first `length` tokens of a text; family [N]: the same for copies of any kind.

    by_chance: so many rows of a table are equal (categories, say) that equal rows need not be copies.
    """

    content: np.ndarray
    seen: np.ndarray
    family: np.ndarray
    length: int = 0
    by_chance: bool = False

    def families(self) -> list[np.ndarray]:
        """The places, ascending, of each family of two or more records."""
        order = np.argsort(self.family, kind="stable")
        starts = np.flatnonzero(np.diff(self.family[order])) + 1
        return [family for family in np.split(order, starts) if len(family) > 1]

    def kind(self, place: int, other: int) -> str:
        if self.content[place] == self.content[other]:
            return EQUAL
        return f"equal in its first {self.length:,} tokens" if self.seen[place] == self.seen[other] else NEAR

    def closest(self, place: int, others: np.ndarray) -> int:
        """The best of `others`, its copies: the first equal one, else the first equal to a model, else the first."""
        closeness = 2 * (self.content[others] == self.content[place]) + (self.seen[others] == self.seen[place])
        return int(others[closeness.argmax()])

    def counts(self, kinds: Iterable[str]) -> tuple[int, int, str]:
        """(number of EQUAL in `kinds`, number of NEAR, a clause on those that look equal only to a model)."""
        count = collections.Counter(kinds)
        seen = count.total() - count[EQUAL] - count[NEAR]
        rest = f"; {seen:,} more in their first {self.length:,} tokens (dataset.length), all that a model sees"
        return count[EQUAL], count[NEAR], rest if seen else ""


def find_copies(records: AllRecords, report: Report = no_report) -> Copies:
    """Finds equal records, and near copies among texts, pictures and table rows; not series, whose windows overlap.

    Windows in which a series does not change do not count as copies either: all of them are equal.
    """
    keys = content_keys(records.inputs)
    if records.input == "series":
        rows = records.inputs.reshape(len(keys), -1)
        for place in np.flatnonzero(rows.max(1) == rows.min(1)).tolist():
            keys[place] = str(place).encode()
    _, first, content = np.unique(keys, return_index=True, return_inverse=True)
    seen, length = content, 0
    if records.tokens is not None:
        _, seen = np.unique(content_keys(records.tokens), return_inverse=True)
        length = records.tokens.shape[1] - 1
    inputs = records.inputs[first]  # each content once: many equal records would fill each other's neighbour lists
    if records.input == "text":
        pairs = near_texts.near_pairs(inputs, report)
    elif records.input == "image":
        pairs = near_vectors.near_pairs(near_vectors.picture_vectors(inputs), report)
    elif records.input == "table":
        mean, deviation = moments(inputs)
        pairs = near_vectors.near_pairs((inputs - np.array(mean)) / np.array(deviation), report)
    else:
        pairs = iter(())
    order = np.argsort(seen, kind="stable")
    alike = np.stack([order[:-1], order[1:]], 1)[np.diff(seen[order]) == 0]
    pairs = np.concatenate([np.array([*pairs], int).reshape(-1, 2), content[alike]])
    family = _joined(pairs, len(first))[content]
    by_chance = records.input == "table" and len(np.unique(family)) < (1 - FEW) * len(family)
    return Copies(content, seen, family, length, by_chance)


def _joined(pairs: np.ndarray, count: int) -> np.ndarray:
    """The family number of each of `count` items: the connected components of the graph with edges `pairs` [P 2]."""
    links = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    return connected_components(links, directed=False)[1]
