"""Texts that are nearly equal: MinHash and locality-sensitive hashing find pairs to look at, and each is then measured.

(Broder, "On the resemblance and containment of documents", 1997; that near copies in training text do harm, and this
two-step search: Lee and others, arXiv:2107.06499.)
"""

import re
from collections.abc import Iterator

import numpy as np

from deepseek_jax.data.records import Report, unseen

LETTERS = 5  # a shingle: so many bytes in a row of the text's words in lower case
ALIKE = 0.8  # shared shingles / all shingles (Jaccard) from which two texts are near copies
# Of pairs at ALIKE the search, tuned to a lower likeness, overlooks one in ten thousand.
SEARCHED_AT = 0.6
PIECE = 1000  # texts between two reports
_WORD = re.compile(r"\w+")


def near_pairs(texts: np.ndarray, report: Report = unseen) -> Iterator[tuple[int, int]]:
    """Pairs (earlier, later) of places of texts at least ALIKE; of a text's copies at least one pair."""
    from datasketch import MinHash, MinHashLSH

    index, empty = MinHashLSH(threshold=SEARCHED_AT), MinHash(hashfunc=int)
    known: list[np.ndarray] = []
    for place, text in enumerate(texts):
        if place % PIECE == 0:
            report("looking for copies", place, len(texts))
        found = shingles(text)
        sketch = empty.copy()  # shares the permutations, which take longer to draw than a paragraph to sketch
        sketch.update_batch(_mixed(found).tolist())
        for other in sorted(index.query(sketch)):
            if jaccard(known[other], found) >= ALIKE:
                yield other, place
                break
        # Every text is kept, also a copy: the next copy may be like this one alone.
        index.insert(place, sketch)
        known.append(found)


def shingles(text: str) -> np.ndarray:
    """uint64, ascending, none twice: each is LETTERS bytes of the text without punctuation, case and spacing.

    Of a text of signs alone, as it is: without them all such texts would be equal.
    """
    words = " ".join(_WORD.findall(text.lower())) or text
    runs = np.lib.stride_tricks.sliding_window_view(np.frombuffer(words.encode().ljust(LETTERS), np.uint8), LETTERS)
    places = np.uint64(256) ** np.arange(LETTERS, dtype=np.uint64)
    return np.unique(runs.astype(np.uint64) @ places)


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / (len(a) + len(b) - shared)


def _mixed(values: np.ndarray) -> np.ndarray:
    """Spread over 32 bits, which is what a sketch hashes (Knuth's multiplicative hash, with 2^64 / golden ratio)."""
    return (values * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)
