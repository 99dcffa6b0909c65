"""Scores on held-out text: mean nats per token and bits per byte, overall and for each domain.

N domains
"""

from collections.abc import Callable, Iterable

import jax
import numpy as np

from deepseek_jax.data.batches import Batch
from deepseek_jax.data.pipeline import Corpus
from deepseek_jax.tasks.scores import OF_TEXT
from deepseek_jax.train.metrics import bits_per_byte


def bytes_a_target(corpus: Corpus) -> np.ndarray:
    """[N]: mean bytes of held-out text per predicted token; 0 for a domain with nothing held out."""
    count = [(corpus.held_out_bytes[name], corpus.held_out_targets[name]) for name in corpus.domains]
    return np.array([size / targets if targets else 0.0 for size, targets in count])


def names(corpus: Corpus) -> tuple[str, ...]:
    """Names of the scores that `evaluate` returns over all held-out batches; () if nothing is held out."""
    there = [domain for domain in corpus.domains if corpus.held_out_targets[domain]]
    by_domain = [f"bits_per_byte/{domain}" for domain in there if len(corpus.domains) > 1]
    return (*OF_TEXT, "bytes", *by_domain) if there else ()


def evaluate(score: Callable, params, buffers, batches: Iterable[Batch], corpus: Corpus) -> dict[str, float]:
    """loss (nats per target), bits_per_byte and bytes over `batches`, and bits_per_byte/<domain> if there are several.

    Where experts have a capacity (router.capacity_factor), also `dropped`, the share of assignments beyond it; the loss
    is then higher than the model's own.

    score(params, buffers, batch) -> {"nats", "targets"}, each [N] and summed over the batch, and, with a capacity, the
    counts "dropped" and "assigned".  Sums over batches are float64, on the host.  Bits per byte do not depend on the
    tokenizer, so they compare with those of a compressor; over all held-out batches, bytes is exactly the sum of
    `corpus.held_out_bytes`, over some of them an estimate in proportion.  {} without batches.
    """
    sums, queued = {}, None
    for batch in batches:
        ahead = score(params, buffers, batch)
        _add(sums, queued)  # while the device works on this batch, fetch the one before
        queued = ahead
    _add(sums, queued)
    if not sums:
        return {}
    nats, targets = sums["nats"], sums["targets"]
    count = targets * bytes_a_target(corpus)
    result = {
        "loss": float(nats.sum() / max(targets.sum(), 1)),
        "bits_per_byte": bits_per_byte(nats.sum(), count.sum()),
        "bytes": round(count.sum()),
    }
    if "dropped" in sums:
        result["dropped"] = float(sums["dropped"] / max(sums["assigned"], 1))
    for domain, *numbers in zip(corpus.domains, nats, count):
        if len(corpus.domains) > 1 and numbers[1]:
            result[f"bits_per_byte/{domain}"] = bits_per_byte(*numbers)
    return result


def _add(sums: dict, measured: dict | None):
    for name, value in jax.device_get(measured or {}).items():
        sums[name] = sums.get(name, 0.0) + np.asarray(value, np.float64)
