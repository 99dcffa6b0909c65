"""Any text survives the tokenizer; a foreign tokenizer that cannot be used is refused with the reason."""

import json

import numpy as np
import pytest

from deepseek_jax.data import tokenizer as tokenizers
from deepseek_jax.data.tokenizer import SMALLEST, SPECIAL, Tokenizer, check_fits, train_bpe
from deepseek_jax.errors import UserError

ODD = [
    "",
    " \t\r\n\v\f\0\x01\x7f",
    "naïve café, 東京, عربى, 👩‍👩‍👧 and \U0010ffff",
    "  two spaces,\n\n\tthen a tab   ",
    "e\u0301 is not é; \ufeff is no mark here",
    "".join(map(chr, range(0x250))),
    f"{SPECIAL['eos']} and {SPECIAL['fim_hole']} as text",
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_bpe(["the cat sat on the mat in 1984 and 1985\n"] * 50, 300, path)
    return Tokenizer(path)


@pytest.mark.parametrize("text", ODD)
def test_any_text_survives_encoding_and_decoding(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode_batch([text, "x"])[0].tolist() == tokenizer.encode(text)


def test_a_long_text_gives_the_same_tokens_in_pieces(tokenizer, tmp_path, monkeypatch):
    gpt2 = rewritten(tokenizer, tmp_path, lambda description: description["pre_tokenizer"]["pretokenizers"].pop(0))
    rng, pieces = np.random.default_rng(0), 0
    letters = ["cat", "mat", "é", "e\u0301", "東", "٣", "½", "1984", "'s", "_", ".", "\0", SPECIAL["eos"], "👩‍👩"]
    spaces = [" ", " ", "\n", "  ", "\n\n", " \n", "\r\n", "\t", "\x1c", "\x85", "\u00a0", "\u3000"]
    for _ in range(300):
        monkeypatch.setattr(tokenizers, "PIECE", int(rng.integers(1, 20)))
        monkeypatch.setattr(tokenizers, "GROUP", int(rng.integers(1, 40)))
        texts = ["".join(rng.choice(letters + 2 * spaces, rng.integers(0, 60))) for _ in range(5)]
        for each in (tokenizer, gpt2):
            assert [ids.tolist() for ids in each.encode_batch(texts)] == [each.encode(text) for text in texts]
            pieces += sum(len(tokenizer._cuts(text)) - 1 for text in texts)
    assert pieces > 5_000


def test_a_text_stays_whole_where_its_pieces_could_give_other_tokens(tokenizer, tmp_path, monkeypatch):
    def prefixed(description):
        description["pre_tokenizer"]["pretokenizers"][1]["add_prefix_space"] = True

    def split_otherwise(description):
        description["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"}

    def normalised(description):
        description["normalizer"] = {"type": "Strip", "strip_left": True, "strip_right": True}

    monkeypatch.setattr(tokenizers, "PIECE", 10)
    text = "the cat sat on the mat " * 5
    for number, change in enumerate((prefixed, split_otherwise, normalised, lambda of: of.pop("pre_tokenizer"))):
        other = rewritten(tokenizer, tmp_path, change, f"{number}.json")
        assert other.encode_batch([text])[0].tolist() == other.encode(text)


def rewritten(tokenizer, directory, change, name="tokenizer.json") -> Tokenizer:
    """The tokenizer after `change` to what its file describes."""
    description = json.loads(tokenizer.path.read_text())
    change(description)
    (directory / name).write_text(json.dumps(description))
    return Tokenizer(directory / name)


def test_text_cannot_forge_special_tokens(tokenizer):
    special = {getattr(tokenizer, name) for name in SPECIAL}
    assert len(special) == 6
    assert not special & set(tokenizer.encode("".join(SPECIAL.values())))


def test_decode_spells_special_tokens_and_drops_unknown_ids(tokenizer):
    ids = [tokenizer.bos, *tokenizer.encode("cat"), tokenizer.eos, tokenizer.vocab_size + 5]
    assert tokenizer.decode(ids) == f"{SPECIAL['bos']}cat{SPECIAL['eos']}"


def test_each_digit_is_a_token(tokenizer):
    assert len(tokenizer.encode("1984")) == 4


def test_training_is_deterministic_and_respects_the_size(tokenizer, tmp_path):
    train_bpe(["the cat sat on the mat in 1984 and 1985\n"] * 50, 300, tmp_path / "again.json")
    again = Tokenizer(tmp_path / "again.json")
    assert again.vocab_size <= 300 and again.encode("the cat sat") == tokenizer.encode("the cat sat")


def test_a_vocabulary_smaller_than_the_bytes_is_refused(tmp_path):
    with pytest.raises(UserError, match=f"at least {SMALLEST}"):
        train_bpe(["x"], 200, tmp_path / "tokenizer.json")


def foreign(tmp_path, *names):
    """Writes a word-level tokenizer.json with the special tokens `names`, flagged like DeepSeek's FIM tokens."""
    words = ["a", "b", *(SPECIAL.get(name, name) for name in names)]
    flags = dict.fromkeys(("special", "normalized", "single_word", "lstrip", "rstrip"), False)
    added = [{"id": i, "content": word, **flags} for i, word in enumerate(words) if i > 1]
    path = tmp_path / "tokenizer.json"
    model = {"type": "WordLevel", "vocab": {word: i for i, word in enumerate(words)}, "unk_token": "a"}
    path.write_text(json.dumps({"version": "1.0", "added_tokens": added, "pre_tokenizer": None, "model": model}))
    return path


def test_special_tokens_of_a_foreign_tokenizer_are_found_by_name(tmp_path):
    tokenizer = Tokenizer(foreign(tmp_path, "bos", "eos"))
    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad, tokenizer.has_fim) == (2, 3, 3, False)


def test_a_foreign_tokenizer_without_eos_is_refused(tmp_path):
    with pytest.raises(UserError, match="end▁of▁sentence.* give these in tokenizer_config.json beside it"):
        Tokenizer(foreign(tmp_path, "bos"))


@pytest.mark.parametrize(
    ("names", "config", "expected"),
    [
        pytest.param({"bos_token": "<s>", "eos_token": {"content": "</s>"}}, {}, (2, 3, 3), id="by-names"),
        pytest.param({"bos_token": None, "eos_token": "</s>", "pad_token": "<s>"}, {}, (3, 3, 2), id="no-bos"),
        pytest.param(None, {"bos_token_id": 2, "eos_token_id": [3, 2]}, (2, 3, 3), id="by-numbers"),
        pytest.param({"eos_token": "</s>"}, {"bos_token_id": 2, "eos_token_id": 99}, (2, 3, 3), id="by-both"),
    ],
)
def test_special_tokens_named_in_files_beside_the_tokenizer_are_found_and_saved(tmp_path, names, config, expected):
    path = foreign(tmp_path, "<s>", "</s>")
    for name, content in (("tokenizer_config.json", names), ("config.json", config)):
        if content is not None:
            (tmp_path / name).write_text(json.dumps(content))
    Tokenizer(path).save(tmp_path / "run")
    for tokenizer in (Tokenizer(path), Tokenizer(tmp_path / "run/tokenizer.json")):
        assert (tokenizer.bos, tokenizer.eos, tokenizer.pad) == expected
        assert tokenizer.token(SPECIAL["eos"]) == expected[1] and tokenizer.token("<｜User｜>") is None


def test_wrong_special_tokens_in_files_beside_are_ignored(tmp_path):
    path = foreign(tmp_path, "<s>", "</s>")
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": 7, "eos_token": "nowhere"}')
    (tmp_path / "config.json").write_text('{"bos_token_id": true, "eos_token_id": 4}')
    with pytest.raises(UserError, match="documents need both as tokens"):
        Tokenizer(path)


def test_deepseeks_own_special_tokens_take_precedence_over_files_beside(tmp_path):
    path = foreign(tmp_path, "bos", "eos")
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "a", "eos_token": "b"}')
    Tokenizer(path).save(tmp_path / "run")
    assert Tokenizer(path).eos == 3 and not (tmp_path / "run/tokenizer_config.json").exists()


def test_a_foreign_tokenizer_that_does_not_fit_the_model_is_refused(tmp_path):
    path = foreign(tmp_path, "bos", "eos")
    with pytest.raises(UserError, match="set model.vocab_size to at least 4"):
        check_fits(Tokenizer(path), path, 3, 0.0)
    with pytest.raises(UserError, match="set data.fim_rate=0"):
        check_fits(Tokenizer(path), path, 4, 0.1)
    check_fits(Tokenizer(path), path, 4, 0.0)


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "there is no file"),
        ("{", "not JSON"),
        pytest.param("[" * 10**5, "not JSON", id="nested"),
        ("{}", "cannot|not a"),
        ('{"added_tokens": null}', "is not a tokenizer.json"),
        ('{"added_tokens": ["<s>"]}', "is not a tokenizer.json"),
    ],
)
def test_files_that_are_no_tokenizer_are_refused(tmp_path, content, message):
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        Tokenizer(path)
