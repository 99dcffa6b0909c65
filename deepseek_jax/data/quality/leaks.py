"""Records to learn from that stand, equal or nearly, in a split that is to judge what was learned."""

from deepseek_jax.data.quality.copies import Copies
from deepseek_jax.data.quality.finding import Finding
from deepseek_jax.data.quality.whole import Whole


def leaks(whole: Whole, copies: Copies) -> Finding:
    """All training records of a family that has a held-out one; held-out records stay, so scores stay comparable."""
    seen_in = {}
    for family in copies.families():
        held_out = family[~whole.train[family]]
        if len(held_out):
            for place in family[whole.train[family]].tolist():
                equal = held_out[copies.content[held_out] == copies.content[place]]
                seen_in[place] = int((equal if len(equal) else held_out)[0])
    names = [name for name in dict.fromkeys(whole.splits.tolist()) if name != "train"]
    kinds = {place: copies.kind(place, other) for place, other in seen_in.items()}
    equal = sum(kind == "equal" for kind in kinds.values())
    return Finding(
        title="Leakage",
        sentence=f"{equal:,} training records stand in {' or '.join(names)} exactly, {len(kinds) - equal:,} nearly"
        if names
        else "nothing is held out, so nothing can leak",
        examples={
            "train": [(place, whole.said(place)) for place in seen_in],
            "held out": [(other, f"{whole.said(other)}, {kinds[place]}") for place, other in seen_in.items()],
        },
        doubtful={
            place: f"{kinds[place]} to {whole.ids[other]} of {whole.splits[other]}" for place, other in seen_in.items()
        },
    )
