"""The interface that other programs call, on a model whose numbers Hugging Face computed too."""

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import deepseek_jax
from deepseek_jax.errors import UserError

V3 = Path(__file__).parents[1] / "goldens" / "v3"
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(scope="module")
def model():
    return deepseek_jax.from_pretrained(V3)


@pytest.fixture(scope="module")
def expected():
    return dict(np.load(V3 / "expected.npz"))


def test_importing_the_package_does_not_import_jax():
    code = "import sys, deepseek_jax as d; assert 'jax' not in sys.modules; d.generate; assert 'jax' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="no attribute 'generat'"):
        deepseek_jax.generat  # noqa: B018


def test_logits(model, expected):
    scores = model(expected["input_ids"])
    assert scores.logits.dtype == np.float32
    np.testing.assert_allclose(scores.logits, expected["logits"], **CLOSE)
    (further,) = scores.mtp_logits
    np.testing.assert_allclose(further[:, :-1], expected["mtp_logits"], **CLOSE)


@pytest.mark.parametrize("left", [True, False])
def test_padding_on_either_side(model, expected, left):
    mask = expected["pad_mask"].astype(bool)
    tokens = expected["pad_ids"].copy()
    tokens[~mask] = 7  # what padding holds is of no account
    if not left:
        turn = [np.argsort(~row, kind="stable") for row in mask]
        tokens, turned = (np.stack([row[order] for row, order in zip(rows, turn)]) for rows in (tokens, mask))
        np.testing.assert_allclose(model(tokens, turned).logits[turned], expected["pad_logits"][mask], **CLOSE)
        return
    np.testing.assert_allclose(model(tokens, mask).logits[mask], expected["pad_logits"][mask], **CLOSE)


def test_generate_takes_lists_and_arrays(model, expected):
    prompts = expected["input_ids"][:, : int(expected["gen_prompt_len"])]
    tokens = deepseek_jax.generate(model, prompts)
    assert tokens.dtype == np.int32 and tokens.shape == (len(prompts), 16)
    np.testing.assert_array_equal(tokens, expected["gen_tokens"])
    np.testing.assert_array_equal(deepseek_jax.generate(model, prompts.tolist(), max_new_tokens=16), tokens)


def test_nothing_but_eos_follows_eos(model, expected):
    prompts = expected["input_ids"][:, : int(expected["gen_prompt_len"])]
    eos = int(expected["gen_tokens"][0, 3])
    tokens = deepseek_jax.generate(model, prompts, eos=eos)
    np.testing.assert_array_equal(tokens[0], [*expected["gen_tokens"][0, :4], *[eos] * 12])


def test_what_is_saved_is_read_again(model, tmp_path):
    deepseek_jax.save_pretrained(model, tmp_path)
    again = deepseek_jax.from_pretrained(tmp_path)
    assert again.config == model.config
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params)


def test_bfloat16_is_read_and_written_as_such(model, tmp_path):
    rough = deepseek_jax.from_pretrained(V3, dtype="bfloat16")
    deepseek_jax.save_pretrained(rough, tmp_path)
    again = deepseek_jax.from_pretrained(tmp_path, dtype="bfloat16")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(again.params)} == {"bfloat16"}
    jax.tree.map(np.testing.assert_array_equal, again.params, rough.params)


def test_bfloat16_is_close(model, expected):
    rough = deepseek_jax.from_pretrained(V3, dtype="bfloat16")
    logits = rough(expected["input_ids"]).logits
    assert logits.dtype == np.float32
    assert 0 < np.abs(logits - expected["logits"]).mean() < 0.05 * np.abs(expected["logits"]).mean()


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda model: model([1, 2, 3]), "shape"),
        (lambda model: model([[1, 256]]), "token 256"),
        (lambda model: model([[1, 2]], [[1]]), "attention_mask"),
        (lambda model: deepseek_jax.generate(model, [[1], [-1]]), "token -1"),
        (lambda model: deepseek_jax.generate(model, []), "empty"),
        (lambda model: deepseek_jax.loss_and_grads(model, [[1], [2]]), "at least two"),
        (lambda model: deepseek_jax.from_pretrained(V3, dtype="int8"), "dtype"),
    ],
)
def test_what_is_refused(model, call, message):
    with pytest.raises(UserError, match=message):
        call(model)
