"""Random numbers for one showing of a record: they do not depend on the batch or process in which it is read.

B records of a batch
"""

import functools
import hashlib

import numpy as np

TABLE = 1 << 20  # size of the table of normal random numbers
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class Draws:
    """Random numbers that depend only on the seed, record, epoch, earlier showings in that epoch, and a name.

    They come from a hash of these and not from a generator with a state, so that turning one augmentation on or off
    does not change the numbers of the others.
    """

    def __init__(self, seed: int, index_B: np.ndarray, epoch_B: np.ndarray, copy_B: np.ndarray):
        key_B = _mixed(np.full(len(index_B), seed).astype(np.uint64))
        for part_B in (index_B, epoch_B, copy_B):
            key_B = _mixed(key_B ^ np.asarray(part_B).astype(np.uint64))
        self._key_B = key_B

    def __len__(self) -> int:
        return len(self._key_B)

    def uniform(self, name: str, low: float = 0.0, high: float = 1.0) -> np.ndarray:
        """float64 [B] in [low, high)."""
        return low + (high - low) * (self._named(name) >> np.uint64(11)) * 2.0**-53

    def integers(self, name: str, high: int) -> np.ndarray:
        """int64 [B] in [0, high)."""
        return (self.uniform(name) * high).astype(np.int64)

    def normal(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """float32 [B, *shape]: for each record a section of one table, from a random start.

        A generator for each record would take ten times as long.  Sections may overlap, but shifted, which for noise
        in pictures is as good as independence.
        """
        steps = np.arange(np.prod(shape))
        return _normal_table()[(self.integers(name, TABLE)[:, None] + steps) % TABLE].reshape(-1, *shape)

    def again(self, name: str) -> "Draws":
        """A new, independent set of draws for the same records."""
        other = object.__new__(Draws)
        other._key_B = self._named(name)
        return other

    def generators(self, name: str) -> list[np.random.Generator]:
        """A generator for each record, for augmentations that need many numbers."""
        return [np.random.Generator(np.random.SFC64(int(key))) for key in self._named(name)]

    def _named(self, name: str) -> np.ndarray:
        stream = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
        return _mixed(self._key_B ^ np.uint64(stream))


@functools.cache
def _normal_table() -> np.ndarray:
    return np.random.default_rng(0).standard_normal(TABLE, np.float32)


def _mixed(x: np.ndarray) -> np.ndarray:
    """A bijection of 64-bit integers in which each input bit flips about half of the output bits (splitmix64; Steele,
    Lea and Flood, OOPSLA 2014)."""
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is intended
        x = x + GOLDEN
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))
