"""Records unlike all others: those far from their nearest neighbours (Ramaswamy and others, SIGMOD 2000).

N records  D numbers a record
"""

import numpy as np

from deepseek_jax.data.quality.finding import Finding
from deepseek_jax.data.quality.whole import Whole

NEIGHBOURS = 10
FAR = 3.5  # robust deviations above the median (Iglewicz and Hoaglin, 1993)


def outliers(whole: Whole, vectors_ND: np.ndarray) -> Finding:
    """Farthest first; for a person to judge: what is rare may be just what a model should see."""
    score = strangeness(vectors_ND)
    places = [place for place in np.argsort(-score).tolist() if score[place] > FAR]
    return Finding(
        title="Outliers",
        sentence=f"{len(places):,} records are far from all others",
        examples={"": [(place, f"{whole.said(place)}, {score[place]:.1f}") for place in places]} if places else {},
        doubtful={place: f"outlier, {score[place]:.1f} deviations" for place in places},
        certain=False,
    )


def strangeness(vectors_ND: np.ndarray) -> np.ndarray:
    """[N]: the log of the mean distance to the nearest neighbours, in robust deviations from its median."""
    from sklearn.neighbors import NearestNeighbors

    count = min(NEIGHBOURS, len(vectors_ND) - 1)
    distance, _ = NearestNeighbors(n_neighbors=count).fit(vectors_ND).kneighbors()
    far = np.log(np.maximum(distance.mean(1), 1e-9))
    spread = 1.4826 * np.median(np.abs(far - np.median(far)))  # a normal distribution's deviation
    return (far - np.median(far)) / max(spread, 1e-9)
