"""Does the training data cover the held-out data: by class for a set, by domain and in bytes for a corpus."""

import numpy as np

from deepseek_jax.data.quality.all_records import AllRecords
from deepseek_jax.data.quality.finding import Finding
from deepseek_jax.data.quality.sampling import among, sampled

WITHIN = 0.95  # defines "near": this share of training records have another training record as near or nearer


def coverage(records: AllRecords, vectors_ND: np.ndarray) -> Finding:
    """The share of each class's held-out records that have a training record near them (see WITHIN).

    For a random split, it is about 95%.
    """
    from sklearn.neighbors import NearestNeighbors

    held_out = ~records.train
    if not held_out.any():
        return Finding("Coverage", "nothing is held out that training could cover")
    if records.train.sum() < 2:
        return Finding("Coverage", "the only training record has no other by which to tell what is near")
    (train,) = np.nonzero(records.train)
    known = NearestNeighbors(n_neighbors=1).fit(vectors_ND[train[sampled(len(train))]])
    near = np.quantile(known.kneighbors()[0], WITHIN)
    covered = known.kneighbors(vectors_ND[held_out])[0][:, 0] <= near
    groups = np.zeros(len(covered), int) if records.groups is None else records.groups[held_out]
    names = records.group_names if records.groups is not None else ("all",)
    present = np.unique(groups)
    return Finding(
        title="Coverage",
        sentence=f"{covered.mean():.1%} of the held-out records have a training record as near as "
        f"{WITHIN:.0%} of training records have{among(len(train), 'training records')}",
        heads=("class", "held-out records", "with a training record near"),
        rows=tuple((names[k], int((groups == k).sum()), f"{covered[groups == k].mean():.1%}") for k in present),
    )


def domain_coverage(records: AllRecords) -> Finding:
    """Documents and bytes of each domain of a corpus, and their shares of each split."""
    sizes = np.array([len(text.encode()) for text in records.inputs])
    rows = []
    for split in dict.fromkeys(records.splits.tolist()):
        inside = records.splits == split
        for number, name in enumerate(records.group_names):
            mine = inside & (records.groups == number)
            shares = f"{mine.sum() / inside.sum():.1%}", f"{sizes[mine].sum() / sizes[inside].sum():.1%}"
            rows.append((split, name, f"{mine.sum():,}", shares[0], f"{sizes[mine].sum():,}", shares[1]))
    return Finding(
        title="Domain coverage",
        sentence=f"{len(records.ids):,} documents of {len(records.group_names):,} domains, {sizes.sum() / 1e6:,.1f} MB",
        heads=("split", "domain", "documents", "share", "bytes", "share"),
        rows=tuple(rows),
    )
