"""Text classification: which AWS service a paragraph of documentation is about, from botocore's service models."""

import collections
import hashlib
import json
import pathlib

import numpy as np

from deepseek_jax.data import cache
from deepseek_jax.data.corpora import Prose, service_models
from deepseek_jax.data.sets.config import DatasetConfig
from deepseek_jax.data.sets.source import Source, numbered, package
from deepseek_jax.files import write_text

CLASSES = 20
MOST = 800  # paragraphs per service, so that classes do not differ too much in size
SHORTEST = 100  # characters; a shorter paragraph is often a phrase that any service could say


def services(config: DatasetConfig) -> Source:
    """16,000 paragraphs of the 20 services that have the most; TF-IDF with logistic regression scores 0.849."""
    botocore = package("botocore", "botocore", "services")

    def make(directory: pathlib.Path):
        write_text(directory / "paragraphs.json", json.dumps(_read()))

    entry = cache.root(config) / "sets" / f"services-{cache.digest(botocore.__version__, CLASSES, MOST, SHORTEST)}"
    paragraphs = json.loads((cache.build(entry, make) / "paragraphs.json").read_text())
    texts = [text for chosen in paragraphs.values() for text in chosen]
    labels = np.repeat(np.arange(CLASSES), [len(chosen) for chosen in paragraphs.values()])
    records = {"ids": numbered(len(texts)), "inputs": np.array(texts, object), "labels": labels.astype(np.int32)}
    return Source("services", "classes", "text", records, class_names=tuple(paragraphs))


def _read() -> dict[str, list[str]]:
    """Service -> paragraphs that no other service has, in an order that depends only on their content."""
    owner, by_service = {}, collections.defaultdict(list)
    for service, _, model in service_models():
        for paragraph in Prose.paragraphs(model):
            if len(paragraph) >= SHORTEST:
                # None for a paragraph that two services share: neither label would be right.
                owner[paragraph] = service if owner.get(paragraph, service) == service else None
    for paragraph, service in owner.items():
        if service:
            by_service[service].append(paragraph)
    largest = sorted(by_service, key=lambda service: (-len(by_service[service]), service))[:CLASSES]
    return {service: sorted(by_service[service], key=_order)[:MOST] for service in sorted(largest)}


def _order(paragraph: str) -> bytes:
    return hashlib.blake2b(paragraph.encode(), digest_size=8).digest()
