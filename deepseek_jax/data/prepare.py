"""Prepares a source on disk in three stages, text, tokenizer and tokens, each cached under a hash of its inputs."""

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Iterable

import numpy as np
import tensorflow_datasets as tfds

from deepseek_jax.config import CHAT_TEMPLATES, DataConfig
from deepseek_jax.data import cache
from deepseek_jax.data.corpora import CORPORA, UserText
from deepseek_jax.data.records import batched_texts, open_dataset
from deepseek_jax.data.skipped import skipped_sentence
from deepseek_jax.data.tokenizer import TOKENIZER, Tokenizer, check_fits, check_trainable, train_bpe
from deepseek_jax.data.tokens import TokenStore, write_tokens
from deepseek_jax.errors import UserError
from deepseek_jax.files import read_json, write_json
from deepseek_jax.reporting import Report

SAMPLE_BYTES = 8_000_000  # of training text for training the tokenizer
LONGEST_NAME = 100  # bytes of a source's name in file names: file systems allow 255, and suffixes are added to it
SKIPPED = "skipped.json"  # in a prepared text: the records that were skipped


@dataclasses.dataclass(frozen=True)
class Domain:
    """One prepared source: its share of the mix, and the directories of its text and its tokens."""

    name: str
    weight: float
    text: pathlib.Path
    tokens: pathlib.Path

    @functools.cached_property
    def index(self) -> dict:
        return read_json(self.tokens / "index.json")

    @property
    def skipped(self) -> dict:
        """The skipped records as in Skipped.as_dict: count, reasons -> count, the first places."""
        return read_json(self.text / SKIPPED)

    @property
    def skipped_sentence(self) -> str:
        """A sentence for the user on skipped records; "" if there are none."""
        skipped, path = self.skipped, self.text / SKIPPED
        named = "all" if len(skipped["places"]) == skipped["count"] else f"the first {len(skipped['places'])}"
        said = skipped_sentence(skipped)
        return f"{self.name}: {said}; {named} in {path}" if said else ""

    @property
    def dataset(self) -> tfds.core.DatasetBuilder:
        """The text: splits train and held_out of records {text, document, group}."""
        return open_dataset(self.text)

    def store(self, split: str) -> TokenStore:
        return TokenStore(self.tokens, split)


def prepare_domains(data: DataConfig, vocab_size: int, report: Report) -> tuple[Tokenizer, list[Domain]]:
    """Prepares what is missing: the text of every source, one tokenizer for all, and the tokens of each source."""
    if data.held_out == 1 and not data.tokenizer:
        raise UserError("data.held_out is 1, which leaves no text to train a tokenizer on; give data.tokenizer.")
    given = given_tokenizer(data, vocab_size)  # errors come before any text is read
    weights, root = data.shares, cache.root(data)
    names = dict(zip(weights, domain_names(weights), strict=True))
    reports = {source: _prefixed(report, name) for source, name in names.items()}
    texts = {source: prepare_text(data, source, root, reports[source]) for source in weights}
    tokenizer = given or Tokenizer(prepare_tokenizer(vocab_size, weights, texts, root, report))
    version = cache.digest(tokenizer.path.read_text("utf-8"), *sorted(tokenizer.named_beside.items()))
    tokens = {
        source: prepare_tokens(text, tokenizer, version, root, reports[source], data.chat)
        for source, text in texts.items()
    }
    return tokenizer, [Domain(names[source], weights[source], texts[source], tokens[source]) for source in weights]


def given_tokenizer(data: DataConfig, vocab_size: int) -> Tokenizer | None:
    """The tokenizer of data.tokenizer, if any; UserError if it does not fit, or if one cannot be trained instead."""
    if not data.tokenizer:
        check_trainable(vocab_size)
        return None
    tokenizer = Tokenizer(_path(data.tokenizer))
    check_fits(tokenizer, str(tokenizer.path), vocab_size, data.fim_rate)
    return tokenizer


def domain_names(sources: Iterable[str]) -> list[str]:
    """The names of the sources' domains: of a path only the stem; but the sources as given if two would be equal."""
    names = [source if source in CORPORA else _path(source).stem for source in sources]
    return names if len(set(names)) == len(names) else list(sources)


def _prefixed(report: Report, name: str) -> Report:
    return lambda stage, done, total: report(f"{name}: {stage}", done, total)


def _path(source: str) -> pathlib.Path:
    return pathlib.Path(source).expanduser().absolute()


def prepare_text(data: DataConfig, source: str, root: pathlib.Path, report: Report) -> pathlib.Path:
    """Prepares a source as a tensorflow-datasets dataset with splits train and held_out; returns the cache entry."""
    if source in CORPORA:
        name, corpus = source, CORPORA[source]
        settings = dataclasses.asdict(data.parts).get(source, {})
        if corpus.conversations and not data.chat:
            raise UserError(
                f"data.source: {source} are conversations; set data.chat, for example to {CHAT_TEMPLATES[0]}."
            )
        if data.chat and not corpus.conversations:
            raise UserError(f"data.source: {source} is text; leave data.chat empty.")
    elif _path(source).is_file() or _path(source).is_dir():  # not a pipe, which can be read only once
        _check_apart(root, _path(source))
        name, corpus = _path(source).stem, UserText
        settings = {"path": str(_path(source)), "text_field": data.text_field} | ({"chats": True} if data.chat else {})
    else:
        raise UserError(
            f"data.source: {source!r} is neither a corpus ({', '.join(CORPORA)}, mix) nor a file or directory."
        )
    provenance = corpus.provenance(**settings)
    key = cache.digest(str(corpus.VERSION), provenance, data.held_out)

    def make(directory):
        builder = corpus(held_out=data.held_out, data_dir=directory, report=report, **settings)
        builder.download_and_prepare()
        if corpus.provenance(**settings) != provenance:  # it is read twice, and `key` is of the earlier state
            raise UserError(f"{source} changed while it was read; run this again when nothing writes into it.")
        write_json(directory / SKIPPED, builder.skipped.as_dict())

    short = name.encode()[:LONGEST_NAME].decode(errors="ignore")
    return cache.build(root / "text" / f"{short}-{key}", make)


def _check_apart(root: pathlib.Path, source: pathlib.Path):
    """UserError if the cache is inside the source directory and not hidden: it would be read as text next time."""
    place, texts = root.resolve(), source.resolve()
    if place.is_relative_to(texts) and not any(part[0] == "." for part in place.relative_to(texts).parts):
        raise UserError(
            f"prepared data would be written to {root}, among the texts of {source}; give another data.directory, "
            "or set DEEPSEEK_JAX_DATA."
        )


def prepare_tokenizer(
    vocab_size: int, weights: dict[str, float], texts: dict[str, pathlib.Path], root: pathlib.Path, report: Report
) -> pathlib.Path:
    """Trains a BPE on a sample of the training text, each source by its weight; returns the path of tokenizer.json."""
    key = cache.digest(vocab_size, SAMPLE_BYTES, [(text.name, weights[source]) for source, text in texts.items()])

    def sample():
        for source, text in texts.items():
            dataset = open_dataset(text)
            order = np.random.default_rng(0).permutation(dataset.info.splits["train"].num_examples)
            room = weights[source] * SAMPLE_BYTES
            for document in itertools.chain.from_iterable(batched_texts(dataset, "train", order)):
                if room <= 0:
                    break
                room -= len(document.encode())
                yield document

    def make(directory):
        report(f"training a tokenizer of {vocab_size} entries", 0, None)
        train_bpe(sample(), vocab_size, directory / TOKENIZER)

    return cache.build(root / "tokenizers" / key, make) / TOKENIZER


def prepare_tokens(
    text: pathlib.Path, tokenizer: Tokenizer, version: str, root: pathlib.Path, report: Report, chat: str
) -> pathlib.Path:
    """Tokenizes both splits of a text, conversations by the template `chat`; returns the cache entry."""
    entry = root / "tokens" / "-".join(filter(None, (text.name, version, chat)))
    return cache.build(entry, lambda directory: write_tokens(directory, open_dataset(text), tokenizer, report, chat))
