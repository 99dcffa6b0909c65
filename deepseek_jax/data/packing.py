"""Packs documents into rows, with random access: row i is a pure function of the documents, the settings and i.

The shuffled documents of an epoch form one stream; its row i is the S tokens from token i * (S - 1) on.  Consecutive
rows share one token, so every token of the stream except the first is a target exactly once.

N documents  S sequence length  R rows per epoch
"""

import numpy as np

from deepseek_jax.data.tokenizer import Tokenizer
from deepseek_jax.data.tokens import TokenStore

# tokens, segment_ids, positions, domain_ids; for conversations also answers, 1 for the assistant's tokens: int32 [S]
Row = dict[str, np.ndarray]
ENDLESS = 2**56  # length of an endless stream; a mix of several is longer, and must still fit the integer of len()


class Epoch:
    """The order of one epoch: documents [N], rows [R], and the start of each document in the stream [N + 1].

    `cuts` [N, 2]: the two tokens at which a document is cut for fill-in-the-middle; -1 for documents left whole.
    """

    def __init__(self, lengths: np.ndarray, sequence_length: int, fim_rate: float, seed: tuple[int, ...] | None):
        """Without a seed, documents and rows keep their original order and no document is cut."""
        N = len(lengths)
        self.cuts = np.full((N, 2), -1)
        self.documents = np.arange(N)
        rng = None if seed is None else np.random.default_rng(seed)
        if rng:
            self.documents = rng.permutation(N)
            # A fixed number of documents, not a coin flip for each, so that the streams of all epochs are equally long.
            chosen = rng.choice(N, size=round(fim_rate * N), replace=False)
            self.cuts[chosen] = np.sort(rng.integers(0, lengths[chosen, None] + 1, (len(chosen), 2)), axis=1)
        packed = lengths + 2 + 3 * (self.cuts[:, 0] >= 0)  # bos and eos, and the three sentinels
        self.starts = np.concatenate([[0], np.cumsum(packed[self.documents])])
        R = rows_in(int(self.starts[-1]), sequence_length)
        self.rows = rng.permutation(R) if rng else np.arange(R)


def rows_in(stream: int, sequence_length: int) -> int:
    """The number of rows for a stream of this many tokens: each adds S - 1 targets; the first token is not a target."""
    return -(-max(stream - 1, 0) // (sequence_length - 1))


class PackedRows:
    """The endless rows of one domain: `rows[i]` belongs to epoch i // R, and each epoch has its own order.

    With `seed` None, for held-out data, there is one epoch (len() is R) in the original order, without cuts.
    """

    def __init__(
        self,
        store: TokenStore,
        tokenizer: Tokenizer,
        *,
        sequence_length: int,
        fim_rate: float,
        domain: int,
        seed: int | None,
        answers: bool = False,
    ):
        """`answers`: the store contains conversations; `domain`: the id for domain_ids."""
        self.store, self.sequence_length, self.fim_rate, self.domain = store, sequence_length, fim_rate, domain
        self.seed, self.answers = seed, answers
        self.bos, self.eos, self.pad = tokenizer.bos, tokenizer.eos, tokenizer.pad
        self.sentinels = tokenizer.fim_begin, tokenizer.fim_hole, tokenizer.fim_end
        self._epochs: dict[int, Epoch] = {}
        self.rows_per_epoch = len(self.epoch(0).rows)

    def __len__(self) -> int:
        return self.rows_per_epoch if self.seed is None else ENDLESS

    def epoch(self, number: int) -> Epoch:
        epoch = self._epochs.get(number)
        if epoch is None:  # two threads may both do this, with the same result
            seed = None if self.seed is None else (self.seed, self.domain, number)
            epoch = Epoch(self.store.lengths, self.sequence_length, self.fim_rate, seed)
            # Two are kept, as prefetching reads rows across the end of an epoch.
            self._epochs = dict([*self._epochs.items(), (number, epoch)][-2:])
        return epoch

    def __getitem__(self, index: int) -> Row:
        number, within = divmod(index, self.rows_per_epoch)
        epoch, S = self.epoch(number), self.sequence_length
        lo = int(epoch.rows[within]) * (S - 1)
        hi = min(lo + S, int(epoch.starts[-1]))
        row = {key: np.zeros(S, np.int32) for key in ("tokens", "segment_ids", "positions")}
        row["domain_ids"] = np.full(S, self.domain, np.int32)
        row["tokens"][hi - lo :] = self.pad
        if self.answers:
            row["answers"] = np.zeros(S, np.int32)
        segment, at = 0, lo
        place = int(np.searchsorted(epoch.starts, lo, side="right")) - 1
        while at < hi:
            start, stop = int(epoch.starts[place]), min(hi, int(epoch.starts[place + 1]))
            piece = slice(at - lo, stop - lo)
            segment += 1
            document = int(epoch.documents[place])
            row["tokens"][piece] = self._read(epoch, document, at - start, stop - start)
            if self.answers:
                row["answers"][piece] = self._read_answers(document, at - start, stop - start)
            row["segment_ids"][piece] = segment
            row["positions"][piece] = np.arange(stop - at)
            place, at = place + 1, stop
        return row

    def _read(self, epoch: Epoch, document: int, start: int, stop: int) -> np.ndarray:
        """Tokens `start` to `stop` of a document as laid out in the stream, special tokens included."""
        read, at = [], 0
        for part in self._layout(int(self.store.lengths[document]), *map(int, epoch.cuts[document])):
            lo, hi = part if isinstance(part, tuple) else (0, 1)
            first, last = max(start - at, 0) + lo, min(stop - at + lo, hi)
            if first < last:
                read.append(self.store.read(document, first, last) if isinstance(part, tuple) else [part])
            at += hi - lo
        return np.concatenate(read)

    def _read_answers(self, document: int, start: int, stop: int) -> np.ndarray:
        """The mask for `_read`: 0 for bos, 1 for the last eos, which ends an answer; conversations are never cut."""
        length = int(self.store.lengths[document])
        return np.concatenate([[0], self.store.read(document, 0, length, "answers"), [1]])[start:stop]

    def _layout(self, length: int, a: int, b: int) -> list[int | tuple[int, int]]:
        """A document as special tokens and ranges of its tokens; if cut, prefix, suffix, middle (V3, section 4.1)."""
        if a < 0:
            return [self.bos, (0, length), self.eos]
        begin, hole, end = self.sentinels
        return [self.bos, begin, (0, a), hole, (b, length), end, (a, b), self.eos]
