"""The documents of a language model's corpus, as the checks look at them; their domains stand for classes."""

import json

import numpy as np

from deepseek_jax.config import DataConfig
from deepseek_jax.data import cache
from deepseek_jax.data.documents import records_were
from deepseek_jax.data.prepare import SKIPPED, domain_names, parse_weights, prepare_text
from deepseek_jax.data.quality.all_records import AllRecords
from deepseek_jax.data.quality.finding import Finding
from deepseek_jax.data.records import Report, open_dataset


def all_documents(data: DataConfig, report: Report) -> tuple[AllRecords, Finding]:
    """Every document of every domain, and what was skipped in reading; text that is not prepared is prepared first."""
    sources = list(parse_weights(data))
    names = domain_names(sources)
    columns: dict[str, list] = {"ids": [], "inputs": [], "splits": [], "groups": []}
    skipped: dict[str, dict] = {}
    for number, (name, source) in enumerate(zip(names, sources, strict=True)):
        entry = prepare_text(data, source, cache.root(data), report)
        skipped[name] = json.loads((entry / SKIPPED).read_text())
        dataset = open_dataset(entry)
        for split in dataset.info.splits:
            for record in dataset.as_data_source(split):
                columns["ids"].append(record["document"].decode())
                columns["inputs"].append(record["text"].decode())
                columns["splits"].append(split)
                columns["groups"].append(number)
    arrays = {name: np.array(values) for name, values in columns.items() if name != "inputs"}
    texts = np.array(columns["inputs"], object)
    title = data.source if data.source == "mix" else names[0]
    return AllRecords(title, "text", inputs=texts, group_names=tuple(names), corpus=True, **arrays), _unread(skipped)


def _unread(skipped: dict[str, dict]) -> Finding:
    places = [(name, place) for name, of in skipped.items() for place in of["places"]]
    count = sum(of["count"] for of in skipped.values())
    return Finding(
        title="Unreadable records",
        sentence=f"{records_were(count)} skipped in reading",
        heads=("domain", "place and reason"),
        rows=tuple(places),
    )
