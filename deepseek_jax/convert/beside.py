"""What lies beside a checkpoint's tensors for other programs, and goes along when it is written anew."""

import json
import shutil
from pathlib import Path

from deepseek_jax import record
from deepseek_jax.convert.config_json import TOKENS
from deepseek_jax.convert.reading import read_tokens
from deepseek_jax.convert.tensors import read_json
from deepseek_jax.data.tokenizer import TOKENIZER, Tokenizer

FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)


def carry(source: Path, target: Path):
    """Copies those of the files that `source` has, and what its config.json says of tokens into that of `target`.

    That of a run says nothing of them, its tokenizer does; without, transformers takes those of the released models.
    """
    for name in FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    if tokens := special_tokens(source):
        there = target / "config.json"
        there.write_text(json.dumps(read_json(there) | tokens, indent=2) + "\n")


def special_tokens(source: Path) -> dict:
    """What config.json says of them, of a run's directory what its tokenizer does."""
    if not (record.is_run(source) and (source / TOKENIZER).is_file()):
        return read_tokens(source)
    tokenizer = Tokenizer(source / TOKENIZER)
    return dict(zip(TOKENS, (tokenizer.bos, tokenizer.eos, tokenizer.pad), strict=True))
