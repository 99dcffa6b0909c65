"""Text to token ids and back: a byte-level BPE trained on the corpus, or a tokenizer.json from elsewhere.

Special tokens have the names of DeepSeek's tokenizer.  If a tokenizer.json has no such bos or eos, their names are read
from the files beside it, as in Hugging Face's model directories.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from deepseek_jax.errors import UserError
from deepseek_jax.files import read_json, write_bytes, write_json

TOKENIZER = "tokenizer.json"  # in a model's directory: its tokenizer
NAMES = "tokenizer_config.json"  # beside it: the names of bos and eos, if they are not DeepSeek's
SPECIAL = {
    "bos": "<｜begin▁of▁sentence｜>",
    "eos": "<｜end▁of▁sentence｜>",
    "pad": "<｜▁pad▁｜>",
    "fim_begin": "<｜fim▁begin｜>",
    "fim_hole": "<｜fim▁hole｜>",
    "fim_end": "<｜fim▁end｜>",
}
TOKEN_NAME_FILES = (NAMES, "config.json")  # files that may name bos, eos and pad of a tokenizer from elsewhere
PIECE = 1 << 20  # characters: longer texts are encoded in pieces of about this size ...
GROUP = 16 << 20  # ... and in groups of this many characters, as encoding takes 45 bytes of memory for each
BOUNDARY = re.compile(r"(?<=[^\W_])[ \n]")
SMALLEST = len(pre_tokenizers.ByteLevel.alphabet()) + len(SPECIAL)  # every byte and every special token


class Tokenizer:
    """Encodes any text; `decode(encode(text)) == text` for a byte-level tokenizer.

    bos, eos, pad, fim_begin, fim_hole, fim_end are token ids; a missing pad is eos, a missing fim_* is None.
    `named_beside`: ids from tokenizer_config.json or config.json, if DeepSeek's bos or eos is missing; if these have
    only eos, bos is the same, as in GPT-2.
    """

    def __init__(self, path: str | pathlib.Path):
        self.path = pathlib.Path(path)
        if self.path.is_dir():
            raise UserError(f"data.tokenizer: {path} is a directory; give the {TOKENIZER} in it.")
        try:
            description = read_json(path)
        except UserError as error:
            raise UserError(f"data.tokenizer: {str(error).rstrip('.')}; give a tokenizer.json.") from None
        try:
            # Marked special, control tokens can be switched off in texts, where a document could forge them otherwise.
            for token in description.get("added_tokens", ()):
                token["special"] = True
            self._backend = tokenizers.Tokenizer.from_str(json.dumps(description))
        except Exception as error:  # the library raises bare Exception, and added_tokens may contain anything
            raise UserError(f"{path} is not a tokenizer.json that the tokenizers library can read: {error}.") from None
        self._backend.encode_special_tokens = True
        self._backend.no_padding()
        self._backend.no_truncation()
        self._splits_at_boundaries = _splits_at_boundaries(description)
        self.vocab_size = max(self._backend.get_vocab().values(), default=-1) + 1
        ids = {name: self._backend.token_to_id(spelling) for name, spelling in SPECIAL.items()}
        self.named_beside = {} if None not in (ids["bos"], ids["eos"]) else self._find_beside()
        ids |= self.named_beside
        if ids["bos"] is None or ids["eos"] is None:
            raise UserError(
                f"{path} has no {SPECIAL['bos']} or no {SPECIAL['eos']}; documents need both as tokens.  If it has "
                f"other names for them, give these in {NAMES} beside it, as bos_token and eos_token."
            )
        self.bos, self.eos = ids["bos"], ids["eos"]
        self.pad = self.eos if ids["pad"] is None else ids["pad"]
        self.fim_begin, self.fim_hole, self.fim_end = ids["fim_begin"], ids["fim_hole"], ids["fim_end"]

    def _find_beside(self) -> dict[str, int]:
        """The ids of bos, eos and pad, by their names in tokenizer_config.json or their ids in config.json.

        {} if neither has eos.
        """
        names, numbers = (
            read_json(path) if path.is_file() else {} for path in map(self.path.with_name, TOKEN_NAME_FILES)
        )
        found = {}
        for token in ("bos", "eos", "pad"):
            name, number = names.get(f"{token}_token"), numbers.get(f"{token}_token_id")
            name = name.get("content") if isinstance(name, dict) else name
            number = number[0] if isinstance(number, list) and number else number  # of several, the first ends a text
            if isinstance(name, str) and (named := self._backend.token_to_id(name)) is not None:
                found[token] = named
            elif type(number) is int and 0 <= number < self.vocab_size:
                found[token] = number
        return {"bos": found["eos"]} | found if "eos" in found else {}

    def save(self, directory: pathlib.Path):
        """Copies the file, and the names of `named_beside`, to a directory, where it then means the same."""
        write_bytes(directory / TOKENIZER, self.path.read_bytes())  # they may be the same file
        if self.named_beside:
            write_json(directory / NAMES, self._names(self.named_beside))

    def save_names(self, directory: pathlib.Path):
        """Writes the names of bos, eos and pad as transformers looks for them."""
        write_json(directory / NAMES, self._names({"bos": self.bos, "eos": self.eos, "pad": self.pad}))

    def _names(self, ids: dict[str, int]) -> dict[str, str]:
        return {f"{token}_token": self._backend.id_to_token(number) for token, number in ids.items()}

    def differs_from_that_in(self, directory: str | pathlib.Path) -> bool:
        """Whether `directory` has a tokenizer.json with different content."""
        kept = pathlib.Path(directory) / TOKENIZER
        return kept.exists() and kept.read_bytes() != self.path.read_bytes()

    @property
    def has_fim(self) -> bool:
        return None not in (self.fim_begin, self.fim_hole, self.fim_end)

    def token(self, spelling: str) -> int | None:
        """The id of a control token by its name in DeepSeek's tokenizer; None if the vocabulary lacks it."""
        if spelling in (SPECIAL["bos"], SPECIAL["eos"]):
            return self.bos if spelling == SPECIAL["bos"] else self.eos
        return self._backend.token_to_id(spelling)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without bos and eos; special tokens spelled in it are encoded as ordinary text."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """As `encode`, for many texts in parallel, each int32 [tokens]; long texts in pieces, to save memory."""
        cuts = [self._cuts(text) for text in texts]
        pieces = (text[a:b] for text, places in zip(texts, cuts, strict=True) for a, b in itertools.pairwise(places))
        encoded = self._encode_grouped(pieces)
        return [np.concatenate(list(itertools.islice(encoded, len(places) - 1))) for places in cuts]

    def _cuts(self, text: str) -> list[int]:
        """Ascending places from 0 to the text's length; the parts between them have the same tokens as the whole."""
        places = [0]
        while self._splits_at_boundaries and len(text) > places[-1] + PIECE:
            found = BOUNDARY.search(text, places[-1] + PIECE)
            if not found:
                break
            places.append(found.start())
        return [*places, len(text)]

    def _encode_grouped(self, texts: Iterable[str]) -> Iterator[np.ndarray]:
        group, size = [], 0
        for text in texts:
            group.append(text)
            size += len(text)
            if size >= GROUP:
                yield from self._encode_at_once(group)
                group, size = [], 0
        yield from self._encode_at_once(group)

    def _encode_at_once(self, texts: list[str]) -> list[np.ndarray]:
        encodings = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, with the names of special tokens; ids beyond the vocabulary are left out."""
        kept = [token for token in np.asarray(ids).tolist() if token < self.vocab_size]
        return self._backend.decode(kept, skip_special_tokens=False)


@dataclasses.dataclass(frozen=True)
class TokenizerFile:
    """The tokenizer.json of a model's directory, which is read when it is first used; equal if the content is."""

    directory: pathlib.Path = dataclasses.field(compare=False)
    vocab_size: int  # the model's
    content: str  # a hash

    @classmethod
    def of(cls, directory: pathlib.Path, vocab_size: int) -> "TokenizerFile | None":
        """None if there is no such file."""
        path = directory / TOKENIZER
        return cls(directory, vocab_size, hashlib.sha256(path.read_bytes()).hexdigest()) if path.is_file() else None

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """UserError as `of_model`."""
        return of_model(self.directory, self.vocab_size)


def train_bpe(texts: Iterable[str], vocab_size: int, path: pathlib.Path, key: str = "model.vocab_size"):
    """Writes a byte-level BPE of at most `vocab_size` entries (the setting `key`), trained on `texts`, to `path`.

    Each digit is a token; otherwise text is split as by GPT-2, so that merges never join words, numbers or lines.
    """
    check_trainable(vocab_size, key)
    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.save(str(path))


def of_model(directory: str | pathlib.Path, vocab_size: int) -> Tokenizer:
    """The tokenizer in a model's directory; UserError if there is none or it has more than `vocab_size` entries."""
    path = pathlib.Path(directory) / TOKENIZER
    if not path.exists():
        raise UserError(f"{directory} has no {TOKENIZER}, which is needed to tokenize text; copy the model's there.")
    tokenizer = Tokenizer(path)
    if tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"{path} has {tokenizer.vocab_size} entries and the model {vocab_size}; copy the model's own there."
        )
    return tokenizer


def check_trainable(vocab_size: int, key: str = "model.vocab_size"):
    """UserError if a tokenizer of `vocab_size` entries (the setting `key`) cannot be trained."""
    if vocab_size < SMALLEST:
        raise UserError(
            f"{key} is {vocab_size}; a byte-level vocabulary needs at least {SMALLEST} entries: "
            f"256 bytes and {len(SPECIAL)} special tokens."
        )


def check_fits(tokenizer: Tokenizer, path: str, vocab_size: int, fim_rate: float):
    """UserError if a given tokenizer does not fit the model or the data settings."""
    if tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"{path} has {tokenizer.vocab_size} entries, model.vocab_size is {vocab_size}; "
            f"set model.vocab_size to at least {tokenizer.vocab_size}."
        )
    if fim_rate and not tokenizer.has_fim:
        raise UserError(
            f"{path} has no {SPECIAL['fim_begin']}; set data.fim_rate=0 to train without fill-in-the-middle."
        )


def _splits_at_boundaries(description: dict) -> bool:
    """Whether no token extends across a BOUNDARY or depends on the text on its other side.

    This holds for GPT-2's splits: a space or newline after a letter or digit begins a new one, and the pattern looks
    ahead only at spaces, and never back.  Other patterns and normalisers count as unknown, so False.
    """
    splits = description.get("pre_tokenizer") or {}
    *before, last = splits.get("pretokenizers") or [splits]
    of_gpt2 = last.get("type") == "ByteLevel" and last.get("use_regex", True) and not last.get("add_prefix_space", True)
    return of_gpt2 and all(part["type"] == "Digits" for part in before) and not description.get("normalizer")
