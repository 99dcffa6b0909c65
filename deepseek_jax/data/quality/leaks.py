"""Training records that are also, exactly or nearly, in a held-out split."""

from deepseek_jax.data.quality.all_records import AllRecords
from deepseek_jax.data.quality.copies import Copies
from deepseek_jax.data.quality.finding import Finding


def leaks(records: AllRecords, copies: Copies) -> Finding:
    """Training records with a held-out copy are to be left out; held-out records stay, so scores stay comparable."""
    seen_in = {}
    for family in copies.families():
        held_out = family[~records.train[family]]
        if len(held_out):
            for place in family[records.train[family]].tolist():
                seen_in[place] = copies.closest(place, held_out)
    names = [name for name in dict.fromkeys(records.splits.tolist()) if name != "train"]
    kinds = {place: copies.kind(place, other) for place, other in seen_in.items()}
    equal, near, rest = copies.counts(kinds.values())
    return Finding(
        title="Leakage",
        sentence=f"{equal:,} training records are also in {' or '.join(names)} exactly, {near:,} nearly{rest}"
        if names
        else "nothing is held out, so nothing can leak",
        examples={
            "train": [(place, records.said(place)) for place in seen_in],
            "held out": [(other, f"{records.said(other)}, {kinds[place]}") for place, other in seen_in.items()],
        },
        doubtful={
            place: f"{kinds[place]} to {records.ids[other]} of {records.splits[other]}"
            for place, other in seen_in.items()
        },
        certain=not copies.by_chance,
    )
