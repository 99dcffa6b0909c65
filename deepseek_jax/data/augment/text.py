"""Augmentation of texts: by words, EDA (Wei and Zou, arXiv:1901.11196), and by clauses, a syntactic transform.

B texts of a batch
"""

import functools
import re
from collections.abc import Sequence

import numpy as np

from deepseek_jax.data.augment.clauses import reorder, sentences
from deepseek_jax.data.augment.config import TextAugmentConfig
from deepseek_jax.data.augment.draws import Draws
from deepseek_jax.data.augment.thesaurus import Thesaurus, open_thesaurus

WORD = re.compile(r"(\W*)(\w+)(\W*)")  # punctuation before the word, the word, punctuation after it
SHORTEST = 3  # letters of a word that may be replaced
STOP = set(
    "the and for are but not you all any can has have had her his its our was were will with this that these those "
    "from they them their then than there here when where which while who whom whose what why how into onto over under "
    "also only each every some such more most other another same does did done doing been being must may might shall "
    "should would could your yours one two".split()
)


def thesaurus_of(config: TextAugmentConfig) -> tuple[str, Thesaurus | None]:
    """(name, thesaurus) that the settings need; ("none", None) if they look up no words."""
    if config.synonyms or config.insert:
        return config.thesaurus, open_thesaurus(config.thesaurus)
    return "none", None


def augment_texts(
    texts_B: Sequence[str], config: TextAugmentConfig, thesaurus: Thesaurus | None, draws: Draws
) -> list[str]:
    """The texts, augmented in the order of TextAugmentConfig; a text that has a word does not become empty."""
    texts = list(texts_B)
    if config.reorder:
        numbers = draws.generators("reorder")
        texts = [reorder_clauses(text, config.reorder, rng) for text, rng in zip(texts, numbers, strict=True)]
    by_words = {
        "synonyms": functools.partial(replace, thesaurus=thesaurus),
        "insert": functools.partial(insert, thesaurus=thesaurus),
        "swap": swap,
        "delete": delete,
    }
    for name, change in by_words.items():
        if share := getattr(config, name):
            numbers = draws.generators(name)
            texts = [" ".join(change(text.split(), share, rng)) for text, rng in zip(texts, numbers, strict=True)]
    return texts


def reorder_clauses(text: str, chance: float, rng: np.random.Generator) -> str:
    """Exchanges the two clauses of each sentence that has them, with probability `chance`."""
    return "".join((rng.random() < chance and reorder(sentence)) or sentence for sentence in sentences(text))


def replace(words: list[str], share: float, rng: np.random.Generator, thesaurus: Thesaurus) -> list[str]:
    """Replaces a share of the words that have synonyms by one of these, keeping case and punctuation."""
    places = [place for place in _common(words) if _synonyms(words[place], thesaurus)]
    words = list(words)
    for place in rng.permutation(places)[: _count(share, len(places), rng)]:
        words[place] = _synonym(words[place], thesaurus, rng)
    return words


def insert(words: list[str], share: float, rng: np.random.Generator, thesaurus: Thesaurus) -> list[str]:
    """Inserts synonyms of random words of the text at random places, `share` times as many as there are words."""
    known = [words[place] for place in _common(words) if _synonyms(words[place], thesaurus)]
    words = list(words)
    for _ in range(_count(share, len(words), rng) if known else 0):
        bare = WORD.fullmatch(known[rng.integers(len(known))])[2].lower()
        words.insert(rng.integers(len(words) + 1), _synonym(bare, thesaurus, rng))
    return words


def swap(words: list[str], share: float, rng: np.random.Generator) -> list[str]:
    """Exchanges two random words, `share` times as often as there are words."""
    words = list(words)
    for _ in range(_count(share, len(words), rng) if len(words) > 1 else 0):
        one, other = rng.choice(len(words), 2, replace=False)
        words[one], words[other] = words[other], words[one]
    return words


def delete(words: list[str], share: float, rng: np.random.Generator) -> list[str]:
    """Leaves out each word with probability `share`; at least one word is kept."""
    kept = rng.random(len(words)) >= share
    if words and not kept.any():
        kept[rng.integers(len(words))] = True
    return [word for word, keep in zip(words, kept, strict=True) if keep]


def _count(share: float, of: int, rng: np.random.Generator) -> int:
    """share * of, randomly rounded up or down, so that short texts are changed at the same rate as long ones."""
    return int(share * of + rng.random())


def _common(words: list[str]) -> list[int]:
    """The indices of words that are not names: not capitalised, or at the beginning of a sentence."""
    begins = [True, *(word[-1] in ".!?:" for word in words)]
    return [place for place, word in enumerate(words) if begins[place] or not word.lstrip("('\"").istitle()]


@functools.lru_cache(1 << 16)  # a text's words are looked up several times at each showing
def _synonyms(word: str, thesaurus: Thesaurus) -> tuple[str, ...]:
    """The synonyms of a word; () for function words, words in capitals, short words, and anything not a word."""
    parts = WORD.fullmatch(word)
    bare = parts[2] if parts else ""
    usual = bare.isalpha() and len(bare) >= SHORTEST and (bare.islower() or bare.istitle())
    return thesaurus(bare.lower()) if usual and bare.lower() not in STOP else ()


def _synonym(word: str, thesaurus: Thesaurus, rng: np.random.Generator) -> str:
    before, bare, after = WORD.fullmatch(word).groups()
    found = _synonyms(word, thesaurus)
    chosen = found[rng.integers(len(found))]
    return before + (chosen[0].upper() + chosen[1:] if bare.istitle() else chosen) + after
