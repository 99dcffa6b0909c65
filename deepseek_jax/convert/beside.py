"""Files beside a checkpoint's tensors that other programs need, copied along when it is converted."""

import shutil
from pathlib import Path

from deepseek_jax import record
from deepseek_jax.convert.config_json import TOKENS
from deepseek_jax.convert.reading import read_tokens
from deepseek_jax.data.tokenizer import NAMES, TOKENIZER, Tokenizer
from deepseek_jax.files import read_json, write_json

FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)


def carry(source: Path, target: Path):
    """Copies those of FILES that `source` has, and writes its special tokens' ids into the config.json of `target`.

    Without these ids transformers would assume those of the released models.
    """
    copy_files(source, target)
    if tokens := special_tokens(source):
        there = target / "config.json"
        write_json(there, read_json(there) | tokens)


def copy_files(source: Path, target: Path):
    """Copies those of FILES that `source` has; for a run directory it also writes the names of special tokens."""
    if source.resolve() == target.resolve():
        return
    for name in FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    if _has_tokenizer_of_run(source) and not (source / NAMES).exists():
        Tokenizer(source / TOKENIZER).save_names(target)


def _has_tokenizer_of_run(source: Path) -> bool:
    return record.kind(source) == "run" and (source / TOKENIZER).is_file()


def special_tokens(source: Path) -> dict:
    """The special tokens' ids by config.json key: from config.json, or for a run directory from its tokenizer."""
    if not _has_tokenizer_of_run(source):
        return read_tokens(source)
    tokenizer = Tokenizer(source / TOKENIZER)
    return dict(zip(TOKENS, (tokenizer.bos, tokenizer.eos, tokenizer.pad), strict=True))
