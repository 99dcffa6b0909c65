"""How many records each class, or domain, has in each split."""

import numpy as np

from deepseek_jax.data.quality.all_records import AllRecords
from deepseek_jax.data.quality.finding import Finding


def class_balance(records: AllRecords) -> Finding | None:
    """None where records have no class."""
    if records.groups is None:
        return None
    names = list(dict.fromkeys(records.splits.tolist()))
    counts = np.array(
        [np.bincount(records.groups[records.splits == name], minlength=len(records.group_names)) for name in names]
    )
    train = counts[names.index("train")]
    few, many = int(train.argmin()), int(train.argmax())
    ratio = train[many] / max(train[few], 1)
    return Finding(
        title="Class balance",
        sentence=f"the largest class of the training split, {records.group_names[many]}, has {train[many]:,} records, "
        f"{ratio:.1f} times as many as the smallest, {records.group_names[few]}",
        heads=("class", *names, "share of train"),
        rows=tuple(
            (name, *of.tolist(), f"{100 * of[names.index('train')] / train.sum():.1f}%")
            for name, of in zip(records.group_names, counts.T, strict=True)
        ),
    )
