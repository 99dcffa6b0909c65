"""The corpus `sums`: additions as conversations, answered after reasoning digit by digit; every answer can be checked.

    python -m experiments.parts.sums experiments/parts/sums_tokenizer.json     # made its tokenizer

configs/sums_tiny.py learns from the reasoning, configs/grpo_tiny.py from rewards for right answers alone.
"""

import dataclasses
import itertools
import json
import sys

import numpy as np
import tokenizers

from deepseek_jax.checking import at_least
from deepseek_jax.data import chat
from deepseek_jax.data.corpora import TextCorpus
from deepseek_jax.data.documents import Document
from deepseek_jax.data.pipeline import SEPARATOR, open_corpus
from deepseek_jax.data.skipped import Skipped
from deepseek_jax.data.tokenizer import SMALLEST, train_bpe
from deepseek_jax.infer.generate import generate
from deepseek_jax.parts import add_corpus
from deepseek_jax.train.checkpoints.restore import Trained

SAID = "reasoning_content", "content"
ASKED = 512  # held-out additions that `right` asks


@dataclasses.dataclass(frozen=True)
class Terms:
    digits: int = 3  # of the longest terms
    count: int = 20_000  # different additions, or all that there are
    seed: int = 0

    def __post_init__(self):
        at_least("parts.sums", self, 1, "digits", "count")


class Sums(TextCorpus, skip_registration=True):
    """What is a + b?  Terms have one digit to `digits`, each number of digits as often as every other."""

    conversations = True

    def __init__(self, *, digits: int, count: int, seed: int, **kwargs):
        self.digits, self.count, self.seed = digits, count, seed
        super().__init__(**kwargs)

    @staticmethod
    def provenance(**settings):
        return settings

    def documents(self, skipped: Skipped):
        for a, b in self._terms():
            thoughts, answer = reasoning(a, b)
            talk = [
                {"role": "user", "content": f"{a}+{b}"},
                {"role": "assistant", "content": answer, "reasoning_content": thoughts},
            ]
            yield Document(f"{a}+{b}", f"{a}+{b}", json.dumps(talk))

    def _terms(self):
        """Different pairs, drawn at random."""
        rng, most = np.random.default_rng(self.seed), 10 ** (2 * self.digits)
        seen = {}
        for _ in range(100 * self.count):
            if len(seen) == min(self.count, most):
                break
            lengths = rng.integers(1, self.digits + 1, 2)
            a, b = (int(rng.integers(0, 10**length)) for length in lengths)
            seen[a, b] = True
        return list(seen)


def reasoning(a: int, b: int) -> tuple[str, str]:
    """(the columns from the last digit on, as 7+5+0=12, each with the carry of the one before; the sum)."""
    columns, carry = [], 0
    for x, y in itertools.zip_longest(reversed(str(a)), reversed(str(b)), fillvalue="0"):
        total = int(x) + int(y) + carry
        columns.append(f"{x}+{y}+{carry}={total:02}")
        carry = total // 10
    return " ".join(columns), str(a + b)


def right(trained: Trained) -> dict[str, float]:
    """A measure for studies: the share of held-out additions that are solved by reasoning, greedily decoded."""
    data, config = trained.experiment.data, trained.experiment.model
    corpus = open_corpus(data, config.vocab_size)
    texts = corpus.held_out_text("sums").removesuffix(SEPARATOR).split(SEPARATOR)[:ASKED]
    talks, tokenizer = [json.loads(text) for text in texts], corpus.tokenizer
    prompts = [chat.prompt(talk[:-1], data.chat, tokenizer, think=True) for talk in talks]
    longest = max(len(tokenizer.encode("".join(map(talk[-1].get, SAID)))) for talk in talks) + 2  # </think>, the end
    found = generate(trained.model, prompts, longest, eos=tokenizer.eos)
    said = [tokenizer.decode(tokens).rpartition(chat.THOUGHT) for tokens in found]
    solved = [bool(mark) and answer == talk[-1]["content"] for (_, mark, answer), talk in zip(said, talks, strict=True)]
    return {"right": sum(solved) / len(solved)}


right.gives = ("right",)


def write_tokenizer(path: str):
    """A tokenizer.json with a token for every byte, for the special tokens of texts, and for those of conversations."""
    train_bpe([], SMALLEST, path)
    tokenizer = tokenizers.Tokenizer.from_file(path)
    tokenizer.add_special_tokens([chat.USER, chat.ASSISTANT, chat.THINK, chat.THOUGHT])
    tokenizer.save(path)


add_corpus("sums", Sums, settings=Terms)

if __name__ == "__main__":
    write_tokenizer(*sys.argv[1:])
