"""Classes of unequal size: weights for the loss, and epochs that show classes equally often.

N records  K classes  E places of an epoch
"""

import numpy as np


def class_weights(labels_N: np.ndarray, classes: int) -> np.ndarray:
    """float32 [K]: N / (K * records of the class), so that classes weigh alike and the mean over records is 1."""
    counts_K = np.bincount(labels_N, minlength=classes)
    return (len(labels_N) / (classes * counts_K)).astype(np.float32)


def epoch_order(count: int, labels_N: np.ndarray | None, balance: str, rng: np.random.Generator) -> np.ndarray:
    """Records [E] in the order in which an epoch shows them.

    none, weights: each once.  sampling: N places, shared evenly among the classes; a large class shows some of its
    records, a small one shows them again.  oversampling: each class as often as the largest has records, so that every
    record is shown at least once.
    """
    if balance in ("none", "weights"):
        return rng.permutation(count)
    members = [np.nonzero(labels_N == label)[0] for label in np.unique(labels_N)]
    if balance == "oversampling":
        sizes = [max(map(len, members))] * len(members)
    else:  # the places that do not divide evenly go to other classes at each epoch
        spare = rng.permutation(len(members)) < count % len(members)
        sizes = [count // len(members) + int(extra) for extra in spare]
    return rng.permutation(np.concatenate([_drawn(of, size, rng) for of, size in zip(members, sizes, strict=True)]))


def partners(count: int, labels_N: np.ndarray | None, balance: str) -> np.ndarray:
    """Records, any of which may be mixed with one that is shown: all, and classes as evenly as epochs show them."""
    even = balance in ("sampling", "oversampling")
    return epoch_order(count, labels_N, "oversampling", np.random.default_rng(0)) if even else np.arange(count)


def _drawn(members: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """`size` of the members, none twice before all were drawn once."""
    rounds = -(-size // len(members))
    return np.concatenate([rng.permutation(members) for _ in range(rounds)])[:size]
