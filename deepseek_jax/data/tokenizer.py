"""Text to token ids and back: a byte-level BPE trained on the corpus, or a tokenizer.json from elsewhere.

Both spell their special tokens as DeepSeek's tokenizer does, so one table finds them.
"""

import json
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from deepseek_jax.errors import UserError

TOKENIZER = "tokenizer.json"  # beside a model: what its text is encoded with
SPECIAL = {
    "bos": "<｜begin▁of▁sentence｜>",
    "eos": "<｜end▁of▁sentence｜>",
    "pad": "<｜▁pad▁｜>",
    "fim_begin": "<｜fim▁begin｜>",
    "fim_hole": "<｜fim▁hole｜>",
    "fim_end": "<｜fim▁end｜>",
}
SMALLEST = len(pre_tokenizers.ByteLevel.alphabet()) + len(SPECIAL)  # every byte and every special token


class Tokenizer:
    """Encodes any text; `decode(encode(text)) == text` for a byte-level tokenizer.

    bos, eos, pad, fim_begin, fim_hole, fim_end are token ids; where the file has none, pad is eos and the rest None.
    """

    def __init__(self, path: str | pathlib.Path):
        self.path = pathlib.Path(path)
        description = _read_json(path)
        try:
            # A document that spells a control token must not forge one: marked special, they can be switched off.
            for token in description.get("added_tokens", ()):
                token["special"] = True
            self._backend = tokenizers.Tokenizer.from_str(json.dumps(description))
        except Exception as error:  # the library raises bare Exception, and the list may hold anything
            raise UserError(f"{path} is not a tokenizer.json that the tokenizers library can read: {error}.") from None
        self._backend.encode_special_tokens = True
        self._backend.no_padding()
        self._backend.no_truncation()
        ids = {name: self._backend.token_to_id(spelling) for name, spelling in SPECIAL.items()}
        if ids["bos"] is None or ids["eos"] is None:
            raise UserError(f"{path} has no {SPECIAL['bos']} or no {SPECIAL['eos']}; documents need both as tokens.")
        self.bos, self.eos = ids["bos"], ids["eos"]
        self.pad = self.eos if ids["pad"] is None else ids["pad"]
        self.fim_begin, self.fim_hole, self.fim_end = ids["fim_begin"], ids["fim_hole"], ids["fim_end"]
        self.vocab_size = max(self._backend.get_vocab().values()) + 1

    @property
    def has_fim(self) -> bool:
        return None not in (self.fim_begin, self.fim_hole, self.fim_end)

    def token(self, spelling: str) -> int | None:
        """The id of a control token by its spelling; None where the vocabulary has none."""
        return self._backend.token_to_id(spelling)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without bos and eos; special tokens spelled in it are encoded as ordinary text."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """As `encode`, many texts at once on all cores."""
        return [encoding.ids for encoding in self._backend.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`, special tokens spelled out; ids beyond the vocabulary give nothing."""
        kept = [token for token in np.asarray(ids).tolist() if token < self.vocab_size]
        return self._backend.decode(kept, skip_special_tokens=False)


def train_bpe(texts: Iterable[str], vocab_size: int, path: pathlib.Path, key: str = "model.vocab_size"):
    """Writes a byte-level BPE of at most `vocab_size` entries (the setting `key`), trained on `texts`, to `path`.

    Digits stand alone and the other splits are GPT-2's, so a merge never joins words, numbers or lines.
    """
    if vocab_size < SMALLEST:
        raise UserError(
            f"{key} is {vocab_size}; a byte-level vocabulary needs at least {SMALLEST} entries: "
            f"256 bytes and {len(SPECIAL)} special tokens."
        )
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
    """The tokenizer.json beside a model of `vocab_size` entries; UserError where there is none or one of more."""
    path = pathlib.Path(directory) / TOKENIZER
    if not path.exists():
        raise UserError(f"{directory} has no {TOKENIZER}, by which text becomes tokens; copy that of the model there.")
    tokenizer = Tokenizer(path)
    if tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"{path} has {tokenizer.vocab_size} entries and the model {vocab_size}; copy the model's own there."
        )
    return tokenizer


def check_fits(tokenizer: Tokenizer, path: str, vocab_size: int, fim_rate: float):
    """UserError when a given tokenizer cannot serve the model or the data's settings."""
    if tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"{path} has {tokenizer.vocab_size} entries, model.vocab_size is {vocab_size}; "
            f"set model.vocab_size to at least {tokenizer.vocab_size}."
        )
    if fim_rate and not tokenizer.has_fim:
        raise UserError(f"{path} has no {SPECIAL['fim_begin']}; set data.fim_rate=0 to train without filling in.")


def _read_json(path) -> dict:
    try:
        description = json.loads(pathlib.Path(path).read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(f"data.tokenizer: there is no file {path}.") from None
    except OSError as error:
        raise UserError(f"data.tokenizer: cannot read {path}: {error.strerror}; give a tokenizer.json.") from None
    except (ValueError, RecursionError):
        raise UserError(f"data.tokenizer: {path} is not JSON; give a tokenizer.json.") from None
    if not isinstance(description, dict):
        raise UserError(f"data.tokenizer: {path} holds no object; give a tokenizer.json.")
    return description
