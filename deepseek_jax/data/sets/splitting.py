"""Splits that hang on a seed and on what the records hold, not on where they stood: equal inputs stay together.

N pictures  M boxes of the picture that has most
"""

import collections
import hashlib
from collections.abc import Sequence

import numpy as np


def content_keys(inputs: np.ndarray) -> list[bytes]:
    """A digest for each record of arrays [N ...] or texts [N]; texts that differ in case or spaces alone are equal."""
    if inputs.dtype == object:
        contents = (" ".join(text.lower().split()).encode() for text in inputs)
    else:
        contents = (record.tobytes() for record in np.ascontiguousarray(inputs))
    return [digest(content) for content in contents]


def digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def rarest(box_labels_NM: np.ndarray, classes: int) -> np.ndarray:
    """[N]: of each picture's classes the one with the fewest boxes in all (of equals the lower), -1 of one without any.

    As strata they give rare classes their share of each split, which chance may leave without.
    """
    counts = np.bincount(box_labels_NM[box_labels_NM >= 0], minlength=classes)
    rank = np.append(np.argsort(np.argsort(counts, kind="stable")), classes)  # the last, which -1 finds: of no box
    labels = np.pad(box_labels_NM, ((0, 0), (0, 1)), constant_values=-1)
    return labels[np.arange(len(labels)), rank[labels].argmin(1)]


def by_content(
    keys: Sequence[bytes],
    strata: np.ndarray,
    val: float,
    test: float,
    seed: int,
    origins: Sequence[bytes] | None = None,
) -> np.ndarray:
    """The split's name for each record; each stratum (a class) is cut in the same shares, to the nearest record.

    Records with equal keys come into one split, and count in the stratum of the first of them.  A stratum that has a
    record has one in training.  origins: what is cut by where it is not the keys, of equal ones by the lowest.
    """
    ranks = [hashlib.blake2b(origin, key=str(seed).encode(), digest_size=16).digest() for origin in origins or keys]
    first, rank_of = {}, {}
    for place, (key, rank) in enumerate(zip(keys, ranks, strict=True)):
        first.setdefault(key, place)
        rank_of[key] = min(rank, rank_of.get(key, rank))
    groups = collections.defaultdict(list)
    for key, place in first.items():
        groups[strata[place]].append(key)
    split_of = {}
    for members in groups.values():
        members.sort(key=rank_of.__getitem__)
        tests = min(round(test * len(members)), len(members) - 1)
        vals = min(round(val * len(members)), len(members) - 1 - tests)
        for rank, key in enumerate(members):
            split_of[key] = "test" if rank < tests else "val" if rank < tests + vals else "train"
    return np.array([split_of[key] for key in keys])


def complete(
    given: np.ndarray,
    keys: Sequence[bytes],
    strata: np.ndarray,
    val: float,
    test: float,
    seed: int,
    origins: Sequence[bytes] | None = None,
) -> np.ndarray:
    """The splits that a source came with; those that it lacks are cut from its training records by content."""
    lacks = {"val": val, "test": test}
    lacks = {name: 0.0 if (given == name).any() else share for name, share in lacks.items()}
    (places,) = np.nonzero(given == "train")
    whole = given.astype("<U5")
    keys, origins = ([of[place] for place in places] for of in (keys, origins or keys))
    whole[places] = by_content(keys, strata[places], seed=seed, origins=origins, **lacks)
    return whole
