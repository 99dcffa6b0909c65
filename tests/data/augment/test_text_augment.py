"""Text augmentation: texts change by the configured share, keep case and punctuation, and are never emptied."""

import collections

import numpy as np
import pytest

from deepseek_jax.data.augment import text, thesaurus
from deepseek_jax.data.augment.clauses import reorder, sentences
from deepseek_jax.data.augment.config import TextAugmentConfig
from deepseek_jax.data.augment.draws import Draws
from deepseek_jax.data.augment.text import augment_texts, delete, insert, replace, swap
from deepseek_jax.errors import UserError

WORDS = "Large: the bucket, which is empty, holds no object (yet).".split()
BOOK = {"large": ("big", "of great size"), "bucket": ("pail",), "empty": ("void",), "object": ("thing",)}


def lookup(word):
    return BOOK.get(word, ())


def lookup_all(word):
    return ("other",)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_synonyms_keep_case_and_punctuation(rng):
    changed = replace(WORDS, 1.0, rng, lookup)
    assert changed[0] in ("Big:", "Of great size:") and changed[2] == "pail," and changed[5] == "void,"
    assert [word for word in changed if word in WORDS] == ["the", "which", "is", "holds", "no", "(yet)."]
    assert WORDS[0] == "Large:"  # the argument is not modified
    counts = [sum(new != old for new, old in zip(replace(WORDS, 0.3, rng, lookup), WORDS)) for _ in range(400)]
    assert abs(np.mean(counts) - 0.3 * 4) < 0.15


def test_names_and_function_words_are_not_replaced(rng):
    words = ["THE", "the", "API", "iPhone", "x", "42", "3rd", "--"]
    assert replace(words, 1.0, rng, lambda word: ("wrong",)) == words
    names = "Ask Amazon Simple Storage. Then store it".split()
    assert replace(names, 1.0, rng, lookup_all) == "Other Amazon Simple Storage. Then other it".split()


def test_insertions_are_synonyms_of_the_text(rng):
    changed = insert(WORDS, 0.5, rng, lookup)
    assert len(changed) in (len(WORDS) + 5, len(WORDS) + 6)
    added = collections.Counter(changed) - collections.Counter(WORDS)
    assert set(added) <= {name for names in BOOK.values() for name in names}
    assert insert(["nothing", "known"], 1.0, rng, lookup) == ["nothing", "known"]


def test_swaps_move_words_and_keep_them(rng):
    changed = swap(WORDS, 0.2, rng)
    assert sorted(changed) == sorted(WORDS) and changed != WORDS
    assert swap(["alone"], 1.0, rng) == ["alone"] and swap([], 1.0, rng) == []
    assert all(swap(["one", "other"], 0.5, rng) == ["other", "one"] for _ in range(9))  # never with itself


def test_deletion_keeps_the_order_and_at_least_one_word(rng):
    kept = [delete(WORDS, 0.4, rng) for _ in range(200)]
    assert abs(np.mean([len(words) for words in kept]) - 6) < 0.4
    rest = iter(WORDS)
    assert all(word in rest for word in kept[0])
    assert all(len(delete(WORDS, 1.0, rng)) == 1 for _ in range(5))
    assert delete(["alone"], 1.0, rng) == ["alone"] and delete([], 1.0, rng) == []


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Although the bucket is empty, it cannot be deleted.", "It cannot be deleted, although the bucket is empty."),
        ("If you omit this value, the default is used.", "The default is used if you omit this value."),
        ("Because it is locked, Amazon S3 keeps the file. ", "Amazon S3 keeps the file because it is locked. "),
        ("Even if the job fails, you pay for it!", "You pay for it even if the job fails!"),
        ("If it exceeds 1,000 bytes, the request fails.", "The request fails if it exceeds 1,000 bytes."),
    ],
)
def test_clauses_are_reordered_in_both_directions(one, other):
    assert reorder(one) == other and reorder(other) == one


@pytest.mark.parametrize(
    "sentence",
    [
        "The bucket is empty.",
        "Indicates if the bucket is empty.",  # an indirect question, not a condition
        "The flag indicates if the bucket is empty.",
        "If red, green, or blue is given, it is used.",  # it is ambiguous which comma ends the clause
        "Specify the date when the job starts.",  # the clause belongs to the noun
        "It runs if asked and stops if told to.",
        "Use it, if you can, with care.",
        "If so, stop.",
        "If it exceeds 1,000 bytes the request fails.",
        "",
    ],
)
def test_sentences_of_unclear_structure_are_not_reordered(sentence):
    assert reorder(sentence) is None


def test_text_is_split_into_sentences():
    given = "Version 1.2 is old. See e.g. docs.python.org for it!  Why? Because"
    assert sentences(given) == ["Version 1.2 is old. ", "See e.g. ", "docs.python.org for it!  ", "Why? ", "Because"]
    assert sentences("... and so on.") == ["... ", "and so on."] and sentences("") == []


def test_augmented_texts_depend_on_their_draws_alone():
    config = TextAugmentConfig(synonyms=0.5, insert=0.2, swap=0.2, delete=0.2, reorder=0.5)
    texts = [" ".join(WORDS), "If it is empty, the bucket is large. Stop."] * 4
    index, epoch = np.arange(8), np.zeros(8, int)
    whole = augment_texts(texts, config, lookup, Draws(0, index, epoch, epoch))
    assert augment_texts(texts[3:], config, lookup, Draws(0, index[3:], epoch[3:], epoch[3:])) == whole[3:]
    assert augment_texts(texts, config, lookup, Draws(0, index, epoch + 1, epoch)) != whole
    assert all(changed.strip() for changed in whole) and whole != texts
    alone = TextAugmentConfig(delete=0.2)
    both = TextAugmentConfig(delete=0.2, swap=1e-9)  # enabled, but too rare to change a word
    numbers = Draws(0, index, epoch, epoch)
    assert augment_texts(texts, alone, None, numbers) == augment_texts(texts, both, None, numbers)
    everything = TextAugmentConfig(delete=1.0)
    assert all(len(t.split()) == 1 for t in augment_texts(texts, everything, None, Draws(0, index, epoch, epoch)))
    untouched = augment_texts(
        ["two  spaces"], TextAugmentConfig(reorder=1.0), None, Draws(0, index[:1], epoch[:1], epoch[:1])
    )
    assert untouched == ["two  spaces"]


def test_moby_has_synonyms():
    synonyms = thesaurus.moby()
    assert synonyms("quickly")[:2] == ("promptly", "swiftly") and "quickly" not in synonyms("quickly")
    assert len(synonyms("image")) == thesaurus.NEAREST and "picture" in synonyms("image")
    assert synonyms("xyzzy") == ()


WORDNET = {  # "large" is an adjective and, more rarely, an adverb; the format is that of wndb(5WN)
    "data.noun": "  licence\n00000010 03 n 02 pail 0 bucket 0 000 | a vessel  \n",
    "data.verb": "",
    "data.adj": "00000000 00 a 03 large 0 big 0 of_great_size(p) 0 000 | big  \n",
    "data.adv": "00000000 02 r 02 large 0 at_large 0 000 | free  \n",
    "index.noun": "  licence\nbucket n 1 1 @ 1 4 00000010\npail n 1 1 @ 1 0 00000010\n",
    "index.verb": "",
    "index.adj": "large a 1 0 1 40 00000000\n",
    "index.adv": "large r 1 2 ! \\ 1 3 00000000\n",
}


def test_wordnet_gives_the_most_frequent_sense(monkeypatch, tmp_path):
    for name, content in WORDNET.items():
        (tmp_path / name).write_text(content)
    monkeypatch.setattr(thesaurus, "WORDNET", tmp_path)
    name, synonyms = text.thesaurus_of(TextAugmentConfig(synonyms=0.1, thesaurus="wordnet"))
    assert name == "wordnet"
    assert synonyms("large") == ("big", "of great size") and synonyms("bucket") == ("pail",) and synonyms("no") == ()


@pytest.mark.parametrize("settings", [{}, {"thesaurus": "auto"}])  # auto: in config.json of an earlier version
def test_moby_is_used_unless_wordnet_is_named(monkeypatch, tmp_path, settings):
    monkeypatch.setattr(thesaurus, "WORDNET", tmp_path)
    assert text.thesaurus_of(TextAugmentConfig(synonyms=0.1, **settings))[0] == "moby"
    monkeypatch.setattr(thesaurus, "WORDNET", tmp_path / "nowhere")
    assert text.thesaurus_of(TextAugmentConfig(swap=0.1)) == ("none", None)  # swapping needs no thesaurus
    with pytest.raises(UserError, match="install Debian's package wordnet-base, or set it to moby"):
        text.thesaurus_of(TextAugmentConfig(insert=0.1, thesaurus="wordnet"))
