"""Splits that depend on a seed and the records' content, not on their order; equal inputs get the same split.

N pictures  M most boxes in a picture
"""

import collections
import hashlib
import math
from collections.abc import Sequence

import numpy as np


def content_keys(inputs: np.ndarray) -> list[bytes]:
    """A digest for each record of arrays [N ...] or texts [N].  Texts that differ only in case or spaces get the same,
    and so do -0.0 and 0.0, whose bytes differ."""
    if inputs.dtype == object:
        contents = (" ".join(text.lower().split()).encode() for text in inputs)
    else:
        contents = ((record + 0).tobytes() for record in inputs)
    return [digest(content) for content in contents]


def made_unique(keys: Sequence[bytes]) -> list[bytes]:
    """Makes keys unique: the first of equal ones is unchanged, the others are hashed together with their number."""
    counts: collections.Counter[bytes] = collections.Counter()
    apart = []
    for key in keys:
        apart.append(digest(key + str(counts[key]).encode()) if counts[key] else key)
        counts[key] += 1
    return apart


def digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def rarest(box_labels_NM: np.ndarray, classes: int) -> np.ndarray:
    """[N]: each picture's class with the fewest boxes in the set (the lower one if equal), -1 for a picture without.

    Used as strata, these give rare classes their share of each split; by chance a split might have none of them.
    """
    counts = np.bincount(box_labels_NM[box_labels_NM >= 0], minlength=classes)
    rank = np.append(np.argsort(np.argsort(counts, kind="stable")), classes)  # the last, at index -1, is for no box
    labels = np.pad(box_labels_NM, ((0, 0), (0, 1)), constant_values=-1)
    return labels[np.arange(len(labels)), rank[labels].argmin(1)]


def by_content(
    keys: Sequence[bytes],
    strata: np.ndarray,
    val: float,
    test: float,
    seed: int,
    origins: Sequence[bytes] | None = None,
    given: np.ndarray | None = None,
) -> np.ndarray:
    """The split's name for each record; each stratum (class) is divided in the same proportions, see `_counts`.

    Records with equal keys get the same split and count as one, in the stratum of the first.  Every stratum keeps a
    record in training.  origins: digests that order the records instead of the keys; of those with equal keys, the
    lowest counts.  given: the source's own splits; val or test, if missing there, are taken from its training records.
    """
    split_of = np.full(len(keys), "train") if given is None else given.astype("<U5")
    val, test = (0.0 if (split_of == name).any() else share for name, share in (("val", val), ("test", test)))
    (places,) = np.nonzero(split_of == "train")
    first, rank_of = {}, {}
    for place in places:
        key, origin = keys[place], (origins or keys)[place]
        rank = hashlib.blake2b(origin, key=str(seed).encode(), digest_size=16).digest()
        first.setdefault(key, place)
        rank_of[key] = min(rank, rank_of.get(key, rank))
    groups = collections.defaultdict(list)
    for key, place in first.items():
        groups[strata[place]].append(key)
    of_key = {}
    ranked = [sorted(members, key=rank_of.__getitem__) for members in groups.values()]
    ranked.sort(key=lambda members: rank_of[members[0]])
    sizes = [len(members) for members in ranked]
    tests = _counts(test, sizes, [size - 1 for size in sizes])
    vals = _counts(val, sizes, [size - 1 - taken for size, taken in zip(sizes, tests, strict=True)])
    for members, of_test, of_val in zip(ranked, tests, vals, strict=True):
        for number, key in enumerate(members):
            of_key[key] = "test" if number < of_test else "val" if number < of_test + of_val else "train"
    split_of[places] = [of_key[keys[place]] for place in places]
    return split_of


def _counts(share: float, sizes: Sequence[int], most: Sequence[int]) -> list[int]:
    """How many records of each stratum a split gets: its share, rounded, but no more than `most`.

    With many small strata, that may be few or none.  If it is less than half of the share in total, the remainder of
    the rounding is carried over to the next stratum, so that some of them give a record.  Strata with a single record
    give none and carry nothing over.
    """
    nearest = [min(round(share * size), limit) for size, limit in zip(sizes, most, strict=True)]
    if 2 * sum(nearest) >= share * sum(size for size in sizes if size > 1):
        return nearest
    counts, carried = [], 0.0
    for size, limit in zip(sizes, most, strict=True):
        carried += share * size if size > 1 else 0
        counts.append(min(round(carried), math.ceil(share * size), limit))
        carried -= counts[-1]
    return counts
