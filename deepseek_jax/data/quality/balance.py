"""How many records each class, or domain, has in each split."""

import numpy as np

from deepseek_jax.data.quality.finding import Finding
from deepseek_jax.data.quality.whole import Whole


def class_balance(whole: Whole) -> Finding | None:
    """None where records have no class."""
    if whole.groups is None:
        return None
    names = list(dict.fromkeys(whole.splits.tolist()))
    counts = np.array(
        [np.bincount(whole.groups[whole.splits == name], minlength=len(whole.group_names)) for name in names]
    )
    train = counts[names.index("train")]
    few, many = int(train.argmin()), int(train.argmax())
    ratio = train[many] / max(train[few], 1)
    return Finding(
        title="Class balance",
        sentence=f"the largest class of the training split, {whole.group_names[many]}, has {train[many]:,} records, "
        f"{ratio:.1f} times as many as the smallest, {whole.group_names[few]}",
        heads=("class", *names, "share of train"),
        rows=tuple(
            (name, *of.tolist(), f"{100 * of[names.index('train')] / train.sum():.1f}%")
            for name, of in zip(whole.group_names, counts.T, strict=True)
        ),
    )
