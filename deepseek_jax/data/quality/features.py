"""Records as short feature vectors, in which similar records are near: for outliers, coverage and label doubts.

N records  H height  W width  O orientations  D numbers per record
"""

import functools
import re

import numpy as np
from scipy.ndimage import gaussian_filter

from deepseek_jax.data.quality.all_records import AllRecords
from deepseek_jax.data.quality.near_vectors import unit
from deepseek_jax.data.sets.dataset import as_unit

DIMENSIONS = 32  # principal components to keep
ORIENTATIONS = 8
CELLS = 7  # per side, in which a picture's gradients are pooled; for 8 x 8 pictures, one per pixel
PIECE = 1024  # pictures processed at once


@np.errstate(invalid="ignore")  # scikit-learn divides by the variance, which is 0 for a single training record
def vectors(records: AllRecords) -> np.ndarray:
    """Feature vectors, float32 [N D] with D at most DIMENSIONS, fitted on the training records alone.

    Principal components of: pictures' histograms of gradients; texts' TF-IDF (latent semantic analysis); standardised
    values of series and tables.
    """
    from sklearn.decomposition import PCA, TruncatedSVD

    if records.input == "text":
        counts = term_weights(records.inputs, records.train)
        if counts.shape[1] == 1:  # a single term in all texts; it cannot be reduced further
            return counts.toarray().astype(np.float32)
        reduce = TruncatedSVD(min(DIMENSIONS, counts.shape[1]), random_state=0)
        return unit(reduce.fit(counts[records.train]).transform(counts)).astype(np.float32)
    rows = gradients(records.inputs) if records.input == "image" else _standardised(records)
    reduce = PCA(min(DIMENSIONS, rows.shape[1], int(records.train.sum())), random_state=0)
    return reduce.fit(rows[records.train]).transform(rows).astype(np.float32)


def term_weights(texts: np.ndarray, known: np.ndarray):
    """TF-IDF, sparse [N, words]: 1 + log(count), times inverse frequency in the texts `known` (a mask), at length 1.

    Words that occur in none of these are ignored.  If these have no words, each other character counts as a word.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = r"\w+"
    pattern = words if any(re.search(words, text) for text in texts[known]) else r"\S"
    weigh = TfidfVectorizer(sublinear_tf=True, token_pattern=pattern)
    return weigh.fit(texts[known]).transform(texts)


def phrase_weights(texts: np.ndarray, known: np.ndarray):
    """As `term_weights`, for words and pairs of words, and for sequences of 3 to 5 characters: sparse [N, 2 ** 18].

    Terms are numbered by a hash, so that their number does not depend on the size of the set.
    """
    from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
    from sklearn.pipeline import make_pipeline, make_union

    count = functools.partial(HashingVectorizer, n_features=2**17, alternate_sign=False, norm=None)
    kinds = count(token_pattern=r"\w+", ngram_range=(1, 2)), count(analyzer="char_wb", ngram_range=(3, 5))
    weigh = make_union(*(make_pipeline(kind, TfidfTransformer(sublinear_tf=True)) for kind in kinds))
    return weigh.fit(texts[known]).transform(texts).tocsr()


def gradients(images: np.ndarray) -> np.ndarray:
    """float32 [N D]: histograms of oriented gradients (Dalal and Triggs, CVPR 2005).

    Cells are blurred into each other, and each value becomes the square root of its share of the picture's total, so
    that a stroke that is moved by a pixel or drawn fainter stays near.
    """
    pieces = (images[at : at + PIECE] for at in range(0, len(images), PIECE))
    return np.concatenate([_gradients(as_unit(piece).mean(-1)) for piece in pieces])


def _gradients(grey_NHW: np.ndarray) -> np.ndarray:
    # A picture of a single row or column has no gradient across it, so that row or column is duplicated.
    grey_NHW = np.pad(grey_NHW, [(0, 0), *((0, int(side == 1)) for side in grey_NHW.shape[1:])], mode="edge")
    up, across = np.gradient(grey_NHW, axis=(1, 2))
    turn = np.arctan2(up, across) / (2 * np.pi) * ORIENTATIONS
    apart = np.abs((turn[..., None] - np.arange(ORIENTATIONS) + ORIENTATIONS / 2) % ORIENTATIONS - ORIENTATIONS / 2)
    strength_NHWO = np.hypot(up, across)[..., None] * np.clip(1 - apart, 0, 1)  # shared by the two nearest directions
    cell = max(1, min(grey_NHW.shape[1:]) // CELLS)
    blurred = gaussian_filter(strength_NHWO, (0, cell / 2, cell / 2, 0))
    rows = blurred[:, cell // 2 :: cell, cell // 2 :: cell].reshape(len(grey_NHW), -1)
    return np.sqrt(rows / np.maximum(rows.sum(1, keepdims=True), 1e-9)).astype(np.float32)


def _standardised(records: AllRecords) -> np.ndarray:
    rows = records.inputs.reshape(len(records.ids), -1).astype(np.float64)
    known = rows[records.train]
    deviation = known.std(0)
    return (rows - known.mean(0)) / np.where(deviation > 0, deviation, 1)
