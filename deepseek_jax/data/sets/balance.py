"""Imbalanced classes: weights for the loss, and epochs that show classes equally often.

N records  K classes  E records shown in an epoch
"""

import numpy as np


def class_weights(labels_N: np.ndarray, classes: int) -> np.ndarray:
    """float32 [K]: N / (K * records of the class), so that all classes have equal weight and records 1 on average."""
    counts_K = np.bincount(labels_N, minlength=classes)
    return (len(labels_N) / (classes * counts_K)).astype(np.float32)


def epoch_order(count: int, labels_N: np.ndarray | None, balance: str, rng: np.random.Generator) -> np.ndarray:
    """Records [E] in the order in which an epoch shows them.

    none, weights: each record once.  sampling: N in all, the same number of each class; large classes show only some
    of their records, small ones show theirs repeatedly.  oversampling: as many of each class as the largest has, so
    that every record is shown at least once.
    """
    if balance in ("none", "weights"):
        return rng.permutation(count)
    members = [np.nonzero(labels_N == label)[0] for label in np.unique(labels_N)]
    if balance == "oversampling":
        sizes = [max(map(len, members))] * len(members)
    else:  # the remainder goes to random classes, others in each epoch
        spare = rng.permutation(len(members)) < count % len(members)
        sizes = [count // len(members) + int(extra) for extra in spare]
    return rng.permutation(np.concatenate([_drawn(of, size, rng) for of, size in zip(members, sizes, strict=True)]))


def partners(count: int, labels_N: np.ndarray | None, balance: str) -> np.ndarray:
    """The records from which mixing partners are drawn: all records, balanced by class if the epochs are."""
    even = balance in ("sampling", "oversampling")
    return epoch_order(count, labels_N, "oversampling", np.random.default_rng(0)) if even else np.arange(count)


def _drawn(members: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """`size` random members; none is drawn again before all have been drawn equally often."""
    rounds = -(-size // len(members))
    return np.concatenate([rng.permutation(members) for _ in range(rounds)])[:size]
