"""Records unlike all others: those far from their nearest neighbours (Ramaswamy and others, SIGMOD 2000).

N records  D numbers per record
"""

import numpy as np

from deepseek_jax.data.quality.all_records import AllRecords
from deepseek_jax.data.quality.features import term_weights
from deepseek_jax.data.quality.finding import Finding
from deepseek_jax.data.quality.near_vectors import picture_vectors
from deepseek_jax.data.quality.sampling import among, sampled

NEIGHBOURS = 10
FAR = 3.5  # robust deviations above the median (Iglewicz and Hoaglin, 1993)


def outliers(records: AllRecords, vectors_ND: np.ndarray) -> Finding:
    """Outliers, farthest first, for the user to judge: a rare record may be just what a model should see.

    Pictures are compared by pixels and texts by all words, as `vectors_ND` keeps only the directions in which most
    records differ, and in these, outliers of a kind look alike.
    """
    if records.input == "image":
        score = outlier_scores(picture_vectors(records.inputs))
    else:
        # Words of held-out texts count too: otherwise a text of unknown words would be a vector of zeros, near others.
        everywhere = np.full(len(records.ids), True)
        score = outlier_scores(term_weights(records.inputs, everywhere) if records.input == "text" else vectors_ND)
    places = [place for place in np.argsort(-score).tolist() if score[place] > FAR]
    return Finding(
        title="Outliers",
        sentence=f"{len(places):,} records are far from all others{among(len(score), 'records')}",
        examples={"": [(place, f"{records.said(place)}, {score[place]:.1f}") for place in places]} if places else {},
        doubtful={place: f"outlier, {score[place]:.1f} deviations" for place in places},
        certain=False,
    )


def outlier_scores(vectors_ND) -> np.ndarray:
    """[N]: the log of the mean distance to the nearest neighbours, in robust deviations above its median.

    `vectors_ND` may be sparse.  In a large set, neighbours are searched for in a sample.

    The deviation is that of the upper half, so that near copies do not make it smaller.  If it is zero, as in a table
    of categories in which most rows occur often, nothing can be called far, and the result is zeros.
    """
    from sklearn.neighbors import NearestNeighbors

    places = sampled(vectors_ND.shape[0])
    known = NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(places) - 1)).fit(vectors_ND[places])
    distance = np.empty(vectors_ND.shape[0])
    distance[places] = known.kneighbors()[0].mean(1)  # without an argument, it excludes each row itself
    rest = np.setdiff1d(np.arange(len(distance)), places)
    if len(rest):
        distance[rest] = known.kneighbors(vectors_ND[rest])[0].mean(1)
    far = np.log(np.maximum(distance, 1e-9))
    spread = 1.4826 * (np.quantile(far, 0.75) - np.median(far))  # if normal, the standard deviation
    return (far - np.median(far)) / spread if spread > 1e-6 else np.zeros_like(far)
