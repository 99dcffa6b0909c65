"""Records unlike all others: those far from their nearest neighbours (Ramaswamy and others, SIGMOD 2000).

N records  D numbers a record
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
    """Farthest first; for a person to judge: what is rare may be just what a model should see.

    Pictures are compared by their pixels and texts by all their words: in `vectors_ND`, which keep what most records
    differ in, the strange ones of a kind all look alike.
    """
    if records.input == "image":
        score = strangeness(picture_vectors(records.inputs))
    else:
        # Held-out words count too: a text of words that training does not know would be at zero, near all others.
        everywhere = np.full(len(records.ids), True)
        score = strangeness(term_weights(records.inputs, everywhere) if records.input == "text" else vectors_ND)
    places = [place for place in np.argsort(-score).tolist() if score[place] > FAR]
    return Finding(
        title="Outliers",
        sentence=f"{len(places):,} records are far from all others{among(len(score), 'records')}",
        examples={"": [(place, f"{records.said(place)}, {score[place]:.1f}") for place in places]} if places else {},
        doubtful={place: f"outlier, {score[place]:.1f} deviations" for place in places},
        certain=False,
    )


def strangeness(vectors_ND) -> np.ndarray:
    """[N]: the log of the mean distance to the nearest neighbours, in robust deviations above its median.

    Of a large set the neighbours are looked for in a sample.

    vectors_ND: an array or a sparse one.  The deviation is that of the upper half: near copies are no measure of it.
    Where it is none, as in a table of categories whose rows mostly stand there often, nothing says what is far.
    """
    from sklearn.neighbors import NearestNeighbors

    places = sampled(vectors_ND.shape[0])
    known = NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(places) - 1)).fit(vectors_ND[places])
    distance = np.empty(vectors_ND.shape[0])
    distance[places] = known.kneighbors()[0].mean(1)  # asked without rows, it leaves each row itself out
    rest = np.setdiff1d(np.arange(len(distance)), places)
    if len(rest):
        distance[rest] = known.kneighbors(vectors_ND[rest])[0].mean(1)
    far = np.log(np.maximum(distance, 1e-9))
    spread = 1.4826 * (np.quantile(far, 0.75) - np.median(far))  # the deviation, for a normal distribution
    return (far - np.median(far)) / spread if spread > 1e-6 else np.zeros_like(far)
