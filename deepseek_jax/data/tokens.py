"""Tokenised documents on disk: concatenated, divided into array_record blocks, with an index of their lengths.

The records are blocks and not documents, because an array_record lookup takes longer the more records there are: 190 us
with 75,000 documents, 50 us with the same tokens in blocks.  A row reads a few kilobytes, however long its documents.
"""

import array
import hashlib
import pathlib
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds

from deepseek_jax.data.chat import encode_document
from deepseek_jax.data.records import SPLITS, RecordBuilder, batched_texts, open_dataset
from deepseek_jax.data.tokenizer import Tokenizer
from deepseek_jax.files import write_json
from deepseek_jax.reporting import Report

BLOCK = 4096  # tokens per record


class Tokens(RecordBuilder, skip_registration=True):
    """The documents of a text corpus as token ids in blocks; bos and eos are not stored.

    With a template `chat`, documents are conversations, and "answers" marks the tokens that the assistant says.
    """

    def __init__(self, *, text: tfds.core.DatasetBuilder, tokenizer: Tokenizer, chat: str = "", **kwargs):
        self.text, self.tokenizer, self.chat = text, tokenizer, chat
        ids = np.uint16 if tokenizer.vocab_size <= 2**16 else np.int32
        self.kinds = {"ids": ids} | ({"answers": np.uint8} if chat else {})
        self.lengths = {split: array.array("q") for split in SPLITS}
        self.bytes = dict.fromkeys(SPLITS, 0)  # of UTF-8 text, plus one per document as a separator
        self.answers = dict.fromkeys(SPLITS, 0)  # number of tokens that the assistant says
        self.digest = hashlib.blake2b(digest_size=8)
        super().__init__(**kwargs)

    def features(self):
        kinds = self.kinds.items()
        return {name: tfds.features.Tensor(shape=(None,), dtype=kind, encoding="bytes") for name, kind in kinds}

    def records(self):
        return ((split, block) for split in SPLITS if split in self.text.info.splits for block in self._blocks(split))

    def _blocks(self, split) -> Iterator[dict]:
        pending = {name: np.empty(0, kind) for name, kind in self.kinds.items()}
        for documents in self._encoded(split):
            self.lengths[split].extend(len(each["ids"]) for each in documents)
            pending = {
                name: np.concatenate([left, *(np.asarray(each[name], left.dtype) for each in documents)])
                for name, left in pending.items()
            }
            whole = len(pending["ids"]) // BLOCK * BLOCK
            for start in range(0, whole, BLOCK):
                yield self._block({name: values[start : start + BLOCK] for name, values in pending.items()})
            pending = {name: values[whole:] for name, values in pending.items()}
        if len(pending["ids"]):
            yield self._block(pending)

    def _block(self, arrays: dict) -> dict:
        for values in arrays.values():
            self.digest.update(values.tobytes())
        return arrays

    def _encoded(self, split) -> Iterator[list[dict]]:
        """Yields lists of documents {"ids"}, for conversations also "answers", many at a time."""
        count = self.text.info.splits[split].num_examples
        for texts in batched_texts(self.text, split, range(count)):
            self.report(f"tokenizing {split}", len(self.lengths[split]), count)
            if self.chat:
                yield [self._conversation(split, text) for text in texts]
                continue
            self.bytes[split] += sum(len(text.encode()) + 1 for text in texts)
            yield [{"ids": ids} for ids in self.tokenizer.encode_batch(texts)]

    def _conversation(self, split, text) -> dict:
        ids, answers, said = encode_document(text, self.chat, self.tokenizer)
        self.bytes[split] += said + 1
        self.answers[split] += int(answers.sum())
        return {"ids": ids, "answers": answers}


def write_tokens(
    directory: pathlib.Path, text: tfds.core.DatasetBuilder, tokenizer: Tokenizer, report: Report, chat: str = ""
):
    """Tokenises both splits of `text` into `directory`, with their lengths and index.json; see Tokens."""
    builder = Tokens(text=text, tokenizer=tokenizer, chat=chat, report=report, data_dir=directory)
    builder.download_and_prepare()
    for split, lengths in builder.lengths.items():
        builder.digest.update(np.asarray(lengths, np.int64).tobytes())
        np.save(directory / f"{split}_lengths.npy", np.asarray(lengths, np.int64))
    index = {"digest": builder.digest.hexdigest(), "bytes": builder.bytes} | (
        {"answers": builder.answers} if chat else {}
    )
    write_json(directory / "index.json", index)


class TokenStore:
    """One split of a tokenised corpus with random access: N documents of `lengths` [N] tokens."""

    def __init__(self, entry: pathlib.Path, split: str):
        self.lengths = np.load(entry / f"{split}_lengths.npy")
        self._starts = np.concatenate([[0], np.cumsum(self.lengths)])
        self._blocks = open_dataset(entry).as_data_source(split) if self.lengths.any() else ()

    def __len__(self) -> int:
        return len(self.lengths)

    def read(self, document: int, start: int, stop: int, part: str = "ids") -> np.ndarray:
        """Token ids `start` to `stop` of a document; with part "answers", a conversation's mask instead."""
        offset = int(self._starts[document])
        start, stop = start + offset, stop + offset
        first, last = start // BLOCK, -(-stop // BLOCK)
        ids = np.concatenate([self._blocks[block][part] for block in range(first, last)])
        return ids[start - first * BLOCK : stop - first * BLOCK]
