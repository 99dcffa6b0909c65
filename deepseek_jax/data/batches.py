"""Batches from packed rows, by grain: domains mixed by weight, sharded by process, prefetched in threads or processes.

Microbatch j consists of rows j * M to (j + 1) * M of the mixed stream, M rows in this order.  A process reads only the
rows that it is asked for; rows do not depend on the number of processes, so a run may be resumed with another number.

B rows that this process reads of a microbatch  S sequence length
"""

import contextlib
import multiprocessing
import os
import signal
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence

import grain
import numpy as np
from absl import flags

from deepseek_jax.data import cache
from deepseek_jax.data.packing import PackedRows, Row
from deepseek_jax.errors import UserError

# tokens, segment_ids, positions, domain_ids; for conversations also answers: int32 [B, S]
Batch = dict[str, np.ndarray]


class TrainBatches(Iterator[Batch]):
    """An endless iterator whose whole state is a position; `close()` ends its prefetching threads or processes.

    `fingerprint` identifies everything that the order depends on, so that a state is never restored on other data.
    """

    def __init__(self, read: Callable[[int], grain.DatasetIterator], start: int, fingerprint: str):
        """`read(position)` returns the batches from that position on."""
        self._read, self._fingerprint = read, fingerprint
        self._seek(start)

    def _seek(self, position: int):
        self._position = position
        self._batches = self._read(position)
        # A finalizer also runs at exit: grain's worker processes must be closed before the interpreter shuts down.
        self.close = weakref.finalize(self, self._batches.close)

    def __next__(self) -> Batch:
        batch = next(self._batches)
        self._position += 1
        return batch

    def state(self) -> dict:
        """The state for `restore`: JSON-able, the same in every process."""
        return {"position": self._position, "fingerprint": self._fingerprint}

    def reads_same(self, state: dict) -> bool:
        """Whether the iterator that returned `state` read the same data in the same order."""
        return state["fingerprint"] == self._fingerprint

    def restore(self, state: dict):
        """Continues where the iterator that returned `state` was; UserError if that one read other data."""
        if not self.reads_same(state):
            raise UserError(
                "the checkpoint was trained on other data (corpus, tokenizer, packing, mix, seed or microbatch size); "
                "restore the data settings, or start in another workdir."
            )
        self.close()
        self._seek(state["position"])


def train_batches(
    domains: Sequence[PackedRows], weights: Sequence[float], microbatch: int, start: int, fingerprint: str, **options
) -> TrainBatches:
    """Endless batches [B, S]; each row is from one domain, and any part of the stream mixes them by weight.

    `fingerprint`: of the rows; `options`: see `_batches`.
    """
    rows = grain.MapDataset.mix([grain.MapDataset.source(rows) for rows in domains], weights)
    fingerprint = cache.digest(fingerprint, microbatch)
    return TrainBatches(lambda position: _batches(rows, microbatch, position, **options), start, fingerprint)


class HeldOutRows:
    """Every held-out row of all domains once, then empty rows up to a whole number of batches.

    In a fixed shuffled order, so that the first batches alone are representative of all.
    """

    def __init__(self, domains: Sequence[PackedRows], microbatch: int):
        places = [(domain, row) for domain, rows in enumerate(domains) for row in range(len(rows))]
        self._domains = domains
        self._places = [places[i] for i in np.random.default_rng(0).permutation(len(places))]
        self._length = -(-len(places) // microbatch) * microbatch

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Row:
        if index < len(self._places):
            domain, row = self._places[index]
            return self._domains[domain][row]
        return {key: np.zeros_like(value) for key, value in self[0].items()}


def held_out_batches(domains: Sequence[PackedRows], microbatch: int, **options) -> Iterator[Batch]:
    """Batches [B, S] of all held-out rows (see HeldOutRows), or of the rows `chosen` of each microbatch."""
    rows = HeldOutRows(domains, microbatch)
    if len(rows):
        with contextlib.closing(_batches(rows, microbatch, 0, **options)) as batches:
            yield from batches


class Chosen:
    """The rows at the positions `chosen` [B] of every microbatch, as one sequence."""

    def __init__(self, rows: Sequence[Row], microbatch: int, chosen: Sequence[int]):
        self._rows, self._microbatch, self._chosen = rows, microbatch, [int(place) for place in chosen]

    def __len__(self) -> int:
        return len(self._rows) // self._microbatch * len(self._chosen)

    def __getitem__(self, index: int) -> Row:
        batch, place = divmod(index, len(self._chosen))
        return self._rows[batch * self._microbatch + self._chosen[place]]


def _batches(
    rows: Sequence[Row], microbatch: int, start: int, *, chosen: Sequence[int] | None, workers: int, prefetch: int
) -> grain.DatasetIterator:
    """The rows `chosen` [B] of each microbatch from `start` on, as batches [B, S]; None: all."""
    if chosen is None:
        chosen = range(microbatch)
    mine = grain.MapDataset.source(Chosen(rows, microbatch, chosen))[start * len(chosen) :].batch(len(chosen))
    return read_ahead(mine, workers, prefetch)


def read_ahead(batches: grain.MapDataset, workers: int, prefetch: int) -> grain.DatasetIterator:
    """Iterates over the batches, `prefetch` of them prepared ahead in a thread or in `workers` processes."""
    # One thread: packing holds the GIL, and the other cores are for the training step.
    threads = min(1, prefetch)
    batches = batches.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch))
    if workers:
        if not flags.FLAGS.is_parsed():  # grain reads absl flags, which only app.run would parse
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=max(1, prefetch))
        batches = batches.mp_prefetch(options, _outlast_signals)
    return iter(batches)


def _outlast_signals(number: int, count: int):
    """Makes a reader process ignore Ctrl-C and SIGTERM, which reach it too: the run still has to finish its step and
    save.  The process ends with the run, even if that is killed."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()


def _end_with(run):
    run.join()
    os._exit(0)
