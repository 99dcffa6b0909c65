"""Pictures and table rows that are nearly equal, by their nearest neighbours.

N records  H height  W width  C channels  D numbers a record
"""

import math
from collections.abc import Iterator

import numpy as np

from deepseek_jax.data.records import Report, unseen
from deepseek_jax.data.sets.dataset import as_unit

SIDE = 16  # pixels that pictures are averaged down to at most: noise and JPEG's traces go, the picture stays
NEIGHBOURS = 10
# Numbers a record up to which a tree finds neighbours sooner than comparing all: of 20,000 rows of 5 columns in 0.3 s
# for 0.9, of 8 in 1.6 for 1.0.
FEW = 6
PIECE = 5000  # rows between two reports
# A copy is nearer than this share of the distance to the tenth neighbour.  No distance would do for all sets and
# classes: two ones of MNIST are nearer to each other than two noisy copies of an eight.
CLOSER = 0.4
BY_CHANCE = 1e-6  # or, with few numbers a record, than this happens by chance: in D dimensions CLOSER ** D


def near_pairs(vectors: np.ndarray, report: Report = unseen) -> Iterator[tuple[int, int]]:
    """Pairs (earlier, later) of rows [N D] that are far closer to each other than either is to its other neighbours.

    More than NEIGHBOURS near copies of one record hide each other.
    """
    if len(vectors) < 2:
        return
    distance, index = _neighbours(vectors, min(NEIGHBOURS, len(vectors) - 1), report)
    usual = distance[:, -1]
    near = distance < min(CLOSER, BY_CHANCE ** (1 / vectors.shape[1])) * np.minimum(usual[:, None], usual[index])
    for row, column in np.argwhere(near):
        other = index[row, column]
        yield min(row, other), max(row, other)


def _neighbours(vectors: np.ndarray, count: int, report: Report) -> tuple[np.ndarray, np.ndarray]:
    """Distances and places [N count] of each row's nearest others, ascending."""
    from sklearn.neighbors import NearestNeighbors

    algorithm = "kd_tree" if vectors.shape[1] <= FEW else "brute"  # squared distances by matrix products
    known = NearestNeighbors(n_neighbors=count + 1, algorithm=algorithm).fit(vectors)
    distances, places = [], []
    for start in range(0, len(vectors), PIECE):
        report("looking for copies", start, len(vectors))
        distance, index = known.kneighbors(vectors[start : start + PIECE])
        other = index != np.arange(start, start + len(index))[:, None]
        other[other.all(1), 0] = False  # where more than `count` are as near as the row is to itself
        distances.append(distance[other].reshape(-1, count))
        places.append(index[other].reshape(-1, count))
    return np.concatenate(distances), np.concatenate(places)


def picture_vectors(inputs: np.ndarray) -> np.ndarray:
    """float32 [N D] of pictures [N H W C]: averaged down, with mean 0 and length 1, so light and contrast fall out."""
    N, H, W, C = inputs.shape
    factor = math.ceil(max(H, W) / SIDE)
    grown = np.pad(inputs, ((0, 0), (0, -H % factor), (0, -W % factor), (0, 0)), mode="edge")
    cells = grown.reshape(N, grown.shape[1] // factor, factor, grown.shape[2] // factor, factor, C)
    rows = as_unit(cells).mean((2, 4)).reshape(N, -1)
    return unit(rows - rows.mean(1, keepdims=True))


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows [N D] at length 1; a row of zeros stays."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
