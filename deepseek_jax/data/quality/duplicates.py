"""Records that are in one split more than once."""

import numpy as np

from deepseek_jax.data.quality.copies import Copies
from deepseek_jax.data.quality.finding import Finding
from deepseek_jax.data.quality.whole import Whole


def duplicates(whole: Whole, copies: Copies) -> Finding:
    """Of each family the first record of a split stays, the others are duplicates of it."""
    first_of, contradicting = {}, 0
    for family in copies.families():
        for split in np.unique(whole.splits[family]):
            first, *others = family[whole.splits[family] == split].tolist()
            first_of |= dict.fromkeys(others, first)
        if whole.groups is not None:
            contradicting += len(set(whole.groups[family].tolist())) > 1
    kinds = {place: copies.kind(place, first) for place, first in first_of.items()}
    equal = sum(kind == "equal" for kind in kinds.values())
    sentence = f"{equal:,} records repeat another of their split exactly, {len(kinds) - equal:,} nearly"
    if contradicting:
        sentence += f"; {contradicting:,} families of copies carry different labels"
    return Finding(
        title="Duplicates",
        sentence=sentence,
        examples={
            "kept": [(first, whole.said(first)) for first in first_of.values()],
            "repeated": [(place, f"{whole.said(place)}, {kinds[place]}") for place in first_of],
        },
        doubtful={place: f"{kinds[place]} to {whole.ids[first]}" for place, first in first_of.items()},
    )
