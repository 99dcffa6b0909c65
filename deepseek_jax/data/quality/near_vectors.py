"""Pictures and table rows that are nearly equal, by their nearest neighbours.

N records  H height  W width  C channels  D numbers per record
"""

import math
from collections.abc import Iterator

import numpy as np

from deepseek_jax.data.sets.dataset import as_unit
from deepseek_jax.reporting import Report, no_report

SIDE = 16  # most pixels per side; larger pictures are averaged down, which removes noise and JPEG artefacts
NEIGHBOURS = 10
# Numbers per record up to which a tree is faster than brute force: for 20,000 rows, 0.3 s against 0.9 s with 5 columns,
# but 1.6 s against 1.0 s with 8.
FEW = 6
PIECE = 5000  # rows between two progress reports
# Near copies are closer than this share of the distance to the tenth neighbour.  No absolute distance suits all sets
# and classes: two ones of MNIST are closer to each other than two noisy copies of an eight.
CLOSER = 0.4
# In D dimensions that happens by chance with probability CLOSER ** D; for small D, a smaller share keeps it to this.
BY_CHANCE = 1e-6


def near_pairs(vectors: np.ndarray, report: Report = no_report) -> Iterator[tuple[int, int]]:
    """Yields pairs (earlier, later) of rows [N D] that are far closer to each other than to their other neighbours.

    More than NEIGHBOURS near copies of one record are not found, as they hide each other.
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
    """Distances and places [N count] of each row's `count` nearest other rows, by ascending distance."""
    from sklearn.neighbors import NearestNeighbors

    algorithm = "kd_tree" if vectors.shape[1] <= FEW else "brute"  # squared distances by matrix products
    known = NearestNeighbors(n_neighbors=count + 1, algorithm=algorithm).fit(vectors)
    distances, places = [], []
    for start in range(0, len(vectors), PIECE):
        report("looking for copies", start, len(vectors))
        distance, index = known.kneighbors(vectors[start : start + PIECE])
        other = index != np.arange(start, start + len(index))[:, None]
        other[other.all(1), 0] = False  # more than `count` equal rows, so that the row itself is not among the results
        distances.append(distance[other].reshape(-1, count))
        places.append(index[other].reshape(-1, count))
    return np.concatenate(distances), np.concatenate(places)


def picture_vectors(inputs: np.ndarray) -> np.ndarray:
    """float32 [N D] of pictures [N H W C]: averaged down, at mean 0 and length 1, to ignore brightness and contrast."""
    N, H, W, C = inputs.shape
    factor = math.ceil(max(H, W) / SIDE)
    grown = np.pad(inputs, ((0, 0), (0, -H % factor), (0, -W % factor), (0, 0)), mode="edge")
    cells = grown.reshape(N, grown.shape[1] // factor, factor, grown.shape[2] // factor, factor, C)
    rows = as_unit(cells).mean((2, 4)).reshape(N, -1)
    return unit(rows - rows.mean(1, keepdims=True))


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows [N D] scaled to length 1; rows of zeros stay zero."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
