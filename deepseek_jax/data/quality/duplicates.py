"""Records that occur more than once in a split."""

import numpy as np

from deepseek_jax.data.quality.all_records import AllRecords
from deepseek_jax.data.quality.copies import Copies
from deepseek_jax.data.quality.finding import Finding


def duplicates(records: AllRecords, copies: Copies) -> Finding:
    """Keeps one record per family and split, the first with the most frequent label there; the rest are duplicates."""
    first_of, contradicting = {}, 0
    for family in copies.families():
        for split in np.unique(records.splits[family]):
            members = family[records.splits[family] == split]
            first = _first_of_most(members, records.groups)
            first_of |= {place: first for place in members.tolist() if place != first}
        if records.groups is not None:
            contradicting += len(set(records.groups[family].tolist())) > 1
    kinds = {place: copies.kind(place, first) for place, first in first_of.items()}
    equal, near, rest = copies.counts(kinds.values())
    sentence = f"{equal:,} records repeat another of their split exactly, {near:,} nearly{rest}"
    if contradicting:
        sentence += f"; {contradicting:,} families of copies carry different labels"
    return Finding(
        title="Duplicates",
        sentence=sentence,
        examples={
            "kept": [(first, records.said(first)) for first in first_of.values()],
            "repeated": [(place, f"{records.said(place)}, {kinds[place]}") for place in first_of],
        },
        doubtful={
            place: f"{kinds[place]} to {records.ids[first]}{_labelled(records, place, first)}"
            for place, first in first_of.items()
        },
        certain=not copies.by_chance,
        kept=first_of,
    )


def _first_of_most(members: np.ndarray, groups: np.ndarray | None) -> int:
    if groups is None:
        return int(members[0])
    _, first, counts = np.unique(groups[members], return_index=True, return_counts=True)
    return int(members[first[counts == counts.max()].min()])


def _labelled(records: AllRecords, place: int, first: int) -> str:
    """A clause naming both labels if they differ, else ""."""
    label, other = records.group_of(place), records.group_of(first)
    return "" if label == other else f", which is labelled {other}, this {label}"
