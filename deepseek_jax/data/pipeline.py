"""The corpus as training uses it: training batches, held-out batches, and the byte counts that scores divide by."""

from collections.abc import Iterator, Sequence

from deepseek_jax.config import DataConfig
from deepseek_jax.data import batches, cache
from deepseek_jax.data.packing import PackedRows
from deepseek_jax.data.prepare import Domain, prepare_domains
from deepseek_jax.data.records import batched_texts
from deepseek_jax.data.tokenizer import Tokenizer
from deepseek_jax.errors import UserError
from deepseek_jax.reporting import Report, no_report

SEPARATOR = b"\0"  # ends each held-out document, as the model's eos token does


def open_corpus(data: DataConfig, vocab_size: int, report: Report = no_report) -> "Corpus":
    """Opens the corpus, preparing what is missing; `report(stage, done, total)` receives the progress."""
    tokenizer, domains = prepare_domains(data, vocab_size, report)
    return Corpus(data, tokenizer, domains)


class Corpus:
    """Prepared domains and their tokenizer.  Domain ids in batches are indices into `domains`."""

    def __init__(self, data: DataConfig, tokenizer: Tokenizer, parts: list[Domain]):
        self.data, self.tokenizer, self.parts = data, tokenizer, parts
        self.domains = [part.name for part in parts]

    def train_batches(
        self, microbatch: int, *, seed: int, start: int = 0, chosen: Sequence[int] | None = None
    ) -> batches.TrainBatches:
        """Endless microbatches [microbatch, S] from number `start` on; with `chosen`, only these rows of each."""
        rows = [self.train_rows(domain, seed) for domain in range(len(self.parts))]
        settings = [self.data.sequence_length, self.data.fim_rate, seed, self.tokenizer.bos, self.tokenizer.eos]
        settings += [self.data.chat] if self.data.chat else []
        fingerprint = cache.digest(settings, [(part.index["digest"], part.weight) for part in self.parts])
        weights, reading = [part.weight for part in self.parts], self._reading(chosen)
        return batches.train_batches(rows, weights, microbatch, start, fingerprint, **reading)

    def held_out_batches(self, microbatch: int, *, chosen: Sequence[int] | None = None) -> Iterator[batches.Batch]:
        """Every held-out row once, in a fixed shuffled order; rows that fill up the last batch have segment_ids 0.

        Batches are [microbatch, S]; with `chosen`, only these rows of each."""
        rows = [self._rows(domain, "held_out", fim_rate=0.0, seed=None) for domain in range(len(self.parts))]
        return batches.held_out_batches(rows, microbatch, **self._reading(chosen))

    def train_rows(self, domain: int, seed: int) -> PackedRows:
        """The endless packed rows of one domain; UserError if all of it is held out."""
        if not len(self.parts[domain].store("train").lengths):
            raise UserError(f"data.held_out is 1, which leaves nothing of {self.domains[domain]} to train on.")
        return self._rows(domain, "train", fim_rate=self.data.fim_rate, seed=seed)

    @property
    def held_out_bytes(self) -> dict[str, int]:
        """Bytes of held-out text per domain, with one separator per document: the divisor of bits per byte."""
        return {part.name: part.index["bytes"]["held_out"] for part in self.parts}

    @property
    def held_out_targets(self) -> dict[str, int]:
        """Target tokens of `held_out_batches` per domain: those of each document, or of its answers, and its eos."""
        lengths = {part.name: part.store("held_out").lengths for part in self.parts}
        counts = {part.name: part.index.get("answers", {}).get("held_out") for part in self.parts}
        return {
            name: (int(of.sum()) if counts[name] is None else counts[name]) + len(of) for name, of in lengths.items()
        }

    def held_out_text(self, domain: str, documents: int | None = None) -> bytes:
        """The bytes that `held_out_bytes` counts, in corpus order; with `documents`, only of the first so many."""
        return b"".join(self.held_out_pieces(domain, documents))

    def held_out_pieces(self, domain: str, documents: int | None = None) -> Iterator[bytes]:
        """The bytes of `held_out_text`, some documents at a time."""
        dataset = self.parts[self.domains.index(domain)].dataset
        if "held_out" in dataset.info.splits:
            numbers = range(dataset.info.splits["held_out"].num_examples)[:documents]
            for texts in batched_texts(dataset, "held_out", numbers):
                yield b"".join(text.encode() + SEPARATOR for text in texts)

    def _rows(self, domain: int, split: str, **settings) -> PackedRows:
        store = self.parts[domain].store(split)
        settings |= {"sequence_length": self.data.sequence_length, "answers": bool(self.data.chat)}
        return PackedRows(store, self.tokenizer, domain=domain, **settings)

    def _reading(self, chosen: Sequence[int] | None) -> dict:
        return {"chosen": chosen, "workers": self.data.workers, "prefetch": self.data.prefetch}
