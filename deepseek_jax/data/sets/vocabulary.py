"""Token ids of labelled texts, by a BPE tokenizer trained on the training split alone.

N texts  S tokens kept of each
"""

from collections.abc import Sequence

import numpy as np

from deepseek_jax.data import cache
from deepseek_jax.data.sets.config import DatasetConfig
from deepseek_jax.data.tokenizer import TOKENIZER, Tokenizer, train_bpe


def train_tokenizer(texts: Sequence[str], config: DatasetConfig) -> Tokenizer:
    """A tokenizer of at most `config.vocab_size` entries, trained on `texts` and cached."""
    entry = cache.root(config) / "tokenizers" / cache.digest(config.vocab_size, list(texts))

    def make(directory):
        return train_bpe(texts, config.vocab_size, directory / TOKENIZER, "dataset.vocab_size")

    cache.build(entry, make)
    return Tokenizer(entry / TOKENIZER)


def encode(texts: Sequence[str], tokenizer: Tokenizer, length: int) -> tuple[np.ndarray, np.ndarray]:
    """(ids int32 [N S], padded; lengths int32 [N], at least 1).  Longer texts are truncated to the first S tokens."""
    ids = np.full((len(texts), length), tokenizer.pad, np.int32)
    lengths = np.ones(len(texts), np.int32)
    for row, encoded in enumerate(tokenizer.encode_batch(list(texts))):
        kept = encoded[:length]
        ids[row, : len(kept)] = kept
        lengths[row] = max(len(kept), 1)
    return ids, lengths
