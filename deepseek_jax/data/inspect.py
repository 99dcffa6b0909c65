"""A description of a prepared corpus for the user: sizes, skipped records, and a packed row of each domain as text."""

import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

from deepseek_jax.data.packing import Row
from deepseek_jax.data.pipeline import Corpus
from deepseek_jax.data.prepare import Domain
from deepseek_jax.data.skipped import records_were
from deepseek_jax.data.tokens import SPLITS

PLACES = 10  # skipped records listed per domain


def describe(corpus: Corpus) -> dict:
    """Sizes and skipped records of each domain, and the first packed row of each, split into its documents."""
    return {
        "vocabulary": corpus.tokenizer.vocab_size,
        "domains": {part.name: _sizes(part) for part in corpus.parts},
        "rows": {
            name: pieces(corpus, corpus.train_rows(domain, seed=0)[0]) for domain, name in enumerate(corpus.domains)
        },
    }


def _sizes(part: Domain) -> dict:
    """Sizes of a domain by split.  For conversations also "answers", the assistant's tokens; bytes are of these."""
    sizes = {"weight": part.weight, "skipped": part.skipped}
    for split in SPLITS:
        lengths, size = part.store(split).lengths, part.index["bytes"][split]
        text = size - len(lengths)  # without separators
        tokens = {"tokens": int(lengths.sum())}
        if "answers" in part.index:
            tokens["answers"] = part.index["answers"][split]
        per_token = text / max(1, tokens.get("answers", tokens["tokens"]))
        sizes[split] = {"documents": len(lengths), "bytes": text, **tokens, "bytes_per_token": per_token}
    return sizes


def pieces(corpus: Corpus, row: Row) -> list[dict]:
    """The parts of documents that make up a packed row, without padding."""
    found = []
    for segment in range(1, int(row["segment_ids"].max()) + 1):
        (places,) = np.nonzero(row["segment_ids"] == segment)
        text = corpus.tokenizer.decode(row["tokens"][places])
        found.append({"segment": segment, "start": int(places[0]), "tokens": len(places), "text": text})
    return found


def render(description: dict) -> Group:
    """The result of `describe` as tables and text for a terminal."""
    small = all(sizes[split]["bytes"] < 1e6 for sizes in description["domains"].values() for split in SPLITS)
    unit, factor = ("kB", 1e3) if small else ("MB", 1e6)
    table = Table(title=f"Corpus, {description['vocabulary']} entries in the vocabulary")
    for heading in ("domain", "share", "split", "documents", unit, "tokens", "bytes/token"):
        table.add_column(heading, justify="left" if heading in ("domain", "split") else "right")
    notes = []
    for name, sizes in description["domains"].items():
        for split in SPLITS:
            size = sizes[split]
            counts = f"{size['documents']:,}", f"{size['bytes'] / factor:.2f}", f"{size['tokens']:,}"
            ratio = f"{size['bytes_per_token']:.2f}"
            table.add_row(name, f"{sizes['weight']:.2f}", split.replace("_", "-"), *counts, ratio)
        if "answers" in size:
            said = " and ".join(f"{sizes[split]['answers']:,} {split.replace('_', '-')}" for split in SPLITS)
            notes.append(Text(f"{name}: {unit} and bytes/token are of what the assistant says, {said} tokens"))
        notes += _skipped_lines(name, sizes["skipped"])
    return Group(table, *notes, *_row_lines(description["rows"]))


def _skipped_lines(name: str, skipped: dict) -> list[Text]:
    reasons = ", ".join(f"{count} {reason}" for reason, count in skipped["reasons"].items())
    lines = [Text(f"{name}: {records_were(skipped['count'])} skipped" + (f" ({reasons})" if reasons else ""))]
    lines += [Text(f"  {place}") for place in skipped["places"][:PLACES]]
    if skipped["count"] > PLACES:
        lines.append(Text(f"  and {skipped['count'] - PLACES} more"))
    return lines


def _row_lines(rows: dict) -> list[Text]:
    lines = []
    for name, parts in rows.items():
        lines.append(Text(f"\nA packed row of {name}:", style="bold"))
        for part in parts:
            lines.append(Text(f"── segment {part['segment']}, {part['tokens']} tokens from {part['start']} ──", "dim"))
            lines.append(Text(part["text"]))
    return lines
