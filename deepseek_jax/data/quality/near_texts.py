"""Texts that are nearly equal: MinHash and locality-sensitive hashing find candidate pairs, which are then measured.

(Broder, "On the resemblance and containment of documents", 1997; the harm of near copies in training text and this
two-step search: Lee and others, arXiv:2107.06499.)
"""

import re
from collections.abc import Iterator

import numpy as np

from deepseek_jax.reporting import Report, no_report

LETTERS = 5  # consecutive bytes of the text's lower-case words that make a shingle
ALIKE = 0.8  # Jaccard similarity of shingles from which two texts are near copies
# Tuned to this lower similarity, the search misses one in ten thousand pairs at ALIKE.
SEARCHED_AT = 0.6
PIECE = 1000  # texts between two progress reports
_WORD = re.compile(r"\w+")


def near_pairs(texts: np.ndarray, report: Report = no_report) -> Iterator[tuple[int, int]]:
    """Yields pairs (earlier, later) of places of near copies: for each text that has earlier copies, one pair."""
    from datasketch import MinHash, MinHashLSH

    index, empty = MinHashLSH(threshold=SEARCHED_AT), MinHash(hashfunc=int)
    known: list[np.ndarray] = []
    for place, text in enumerate(texts):
        if place % PIECE == 0:
            report("looking for copies", place, len(texts))
        found = shingles(text)
        sketch = empty.copy()  # shares the permutations: drawing them takes longer than sketching a paragraph
        sketch.update_batch(_mixed(found).tolist())
        for other in sorted(index.query(sketch)):
            if jaccard(known[other], found) >= ALIKE:
                yield other, place
                break
        # Copies are indexed too: a later copy may be similar only to this one.
        index.insert(place, sketch)
        known.append(found)


def shingles(text: str) -> np.ndarray:
    """The distinct shingles, ascending uint64: each is LETTERS bytes of the text without punctuation, case and spacing.

    A text without words is used unchanged: without punctuation, all such texts would be equal.
    """
    words = " ".join(_WORD.findall(text.lower())) or text
    runs = np.lib.stride_tricks.sliding_window_view(np.frombuffer(words.encode().ljust(LETTERS), np.uint8), LETTERS)
    places = np.uint64(256) ** np.arange(LETTERS, dtype=np.uint64)
    return np.unique(runs.astype(np.uint64) @ places)


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / (len(a) + len(b) - shared)


def _mixed(values: np.ndarray) -> np.ndarray:
    """Hashes values to 32 bits, as MinHash expects (Knuth's multiplicative hash, with 2^64 / golden ratio)."""
    return (values * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)
