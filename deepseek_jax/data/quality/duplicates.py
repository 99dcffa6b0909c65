"""Records that are in one split more than once."""

import numpy as np

from deepseek_jax.data.quality.all_records import AllRecords
from deepseek_jax.data.quality.copies import Copies
from deepseek_jax.data.quality.finding import Finding


def duplicates(records: AllRecords, copies: Copies) -> Finding:
    """Of each family the first record of a split stays, the others are duplicates of it."""
    first_of, contradicting = {}, 0
    for family in copies.families():
        for split in np.unique(records.splits[family]):
            first, *others = family[records.splits[family] == split].tolist()
            first_of |= dict.fromkeys(others, first)
        if records.groups is not None:
            contradicting += len(set(records.groups[family].tolist())) > 1
    kinds = {place: copies.kind(place, first) for place, first in first_of.items()}
    equal = sum(kind == "equal" for kind in kinds.values())
    sentence = f"{equal:,} records repeat another of their split exactly, {len(kinds) - equal:,} nearly"
    if contradicting:
        sentence += f"; {contradicting:,} families of copies carry different labels"
    return Finding(
        title="Duplicates",
        sentence=sentence,
        examples={
            "kept": [(first, records.said(first)) for first in first_of.values()],
            "repeated": [(place, f"{records.said(place)}, {kinds[place]}") for place in first_of],
        },
        doubtful={place: f"{kinds[place]} to {records.ids[first]}" for place, first in first_of.items()},
    )
