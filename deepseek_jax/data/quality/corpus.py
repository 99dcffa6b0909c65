"""The documents of a language model's corpus as AllRecords, with domains in place of classes."""

import collections
import math
from collections.abc import Mapping

import numpy as np

from deepseek_jax.config import DataConfig
from deepseek_jax.data import cache
from deepseek_jax.data.prepare import SKIPPED, domain_names, prepare_text
from deepseek_jax.data.quality.all_records import AllRecords
from deepseek_jax.data.quality.finding import Finding
from deepseek_jax.data.records import batched, open_dataset
from deepseek_jax.data.skipped import records_were
from deepseek_jax.files import read_json
from deepseek_jax.reporting import Report

MOST_BYTES = 100_000_000  # of text to compare: takes minutes, and 2 GB of memory for the index


def all_documents(data: DataConfig, report: Report) -> tuple[AllRecords, Finding | None, Finding]:
    """(every document of every domain, a finding if that is only a sample, a finding on records skipped in reading).

    Text that is not prepared is prepared first.  Of more than MOST_BYTES, a sample is used.
    """
    sources = list(data.shares)
    names = domain_names(sources)
    entries = [prepare_text(data, source, cache.root(data), report) for source in sources]
    skipped = {name: read_json(entry / SKIPPED) for name, entry in zip(names, entries, strict=True)}
    datasets = [open_dataset(entry) for entry in entries]
    splits = [
        (number, split, of) for number, dataset in enumerate(datasets) for split, of in dataset.info.splits.items()
    ]
    sizes: collections.Counter[str] = collections.Counter()
    for _, split, of in splits:
        sizes[split] += of.num_bytes
    shares, count = _shares(sizes), sum(of.num_examples for *_, of in splits)
    rng, columns = np.random.default_rng(0), {"ids": [], "inputs": [], "splits": [], "groups": []}
    for number, split, of in splits:
        chosen = np.sort(rng.choice(of.num_examples, math.ceil(shares[split] * of.num_examples), replace=False))
        for records in batched(datasets[number], split, chosen):
            report("reading documents", len(columns["ids"]), None)
            columns["ids"] += [record["document"].decode() for record in records]
            columns["inputs"] += [record["text"].decode() for record in records]
            columns["splits"] += [split] * len(records)
            columns["groups"] += [number] * len(records)
    arrays = {name: np.array(values) for name, values in columns.items() if name != "inputs"}
    texts = np.array(columns["inputs"], object)
    title = data.source if data.source == "mix" else names[0]
    found = AllRecords(title, "text", inputs=texts, group_names=tuple(names), corpus=True, **arrays)
    return found, _sample(len(texts), count), _unread(skipped)


def _shares(sizes: Mapping[str, int]) -> dict[str, float]:
    """The share of documents to use of each split, given their bytes: small splits whole, the same bytes of large ones.

    So held-out text, mostly the smaller part, is compared to as much of training as there is time for.
    """
    shares, left = {}, MOST_BYTES
    for place, split in enumerate(sorted(sizes, key=sizes.__getitem__)):
        shares[split] = min(1.0, left / (len(sizes) - place) / max(sizes[split], 1))
        left -= shares[split] * sizes[split]
    return shares


def _sample(looked: int, count: int) -> Finding | None:
    """A finding that only a sample was used; None if all documents were."""
    if looked == count:
        return None
    return Finding(
        title="Sample",
        sentence=f"{looked:,} of {count:,} documents were looked at, drawn at random, as there are more than "
        f"{MOST_BYTES / 1e6:,.0f} MB; copies of the others are not found, and what is counted is counted among these",
    )


def _unread(skipped: dict[str, dict]) -> Finding:
    places = [(name, place) for name, of in skipped.items() for place in of["places"]]
    count = sum(of["count"] for of in skipped.values())
    return Finding(
        title="Unreadable records",
        sentence=f"{records_were(count)} skipped in reading",
        heads=("domain", "place and reason"),
        rows=tuple(places),
    )
