"""Speculation changes how tokens are reached, never which."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.errors import UserError
from deepseek_jax.infer import cache_lengths, generate, speculative
from deepseek_jax.infer.prompts import LENGTH_MULTIPLE, NO_EOS
from deepseek_jax.infer.sampling import Sampling
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.decoder import Decoder, initialise
from deepseek_jax.models.tree import merge

SIZES = {"vocab_size": 8, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48, "q_lora_rank": 16}
HEADS = {"num_attention_heads": 2, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8}
EXPERTS = {"first_k_dense_replace": 1, "n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
PROMPTS = [[5], [4] * 20, [1, 3, 2, 2, 6, 0]]
MANY = [*PROMPTS, *np.random.default_rng(0).integers(0, 8, (8, LENGTH_MULTIPLE)).tolist()]


def config(depths: int) -> ModelConfig:
    groups = {"n_group": 1, "topk_group": 1, "num_nextn_predict_layers": depths, "initializer_range": 0.3}
    return ModelConfig(**SIZES, **HEADS, **EXPERTS, **groups)


@pytest.fixture(scope="module")
def model():
    """Untrained, but of so few tokens that many drafts are right by chance; one module is what tests/numerics has."""
    return initialise(config(2), jax.random.key(1))


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.7, top_k=5, top_p=0.9)], ids=["greedy", "drawn"])
def test_the_tokens_are_those_of_plain_decoding(model, sampling):
    """Rows of different prompts accept different numbers of drafts, in one batch."""
    plain = generate.new_tokens(model, PROMPTS, 40, sampling=sampling, seed=3)
    tokens, acceptance = speculative.new_tokens(model, PROMPTS, 40, sampling=sampling, seed=3)
    np.testing.assert_array_equal(tokens, plain)
    assert 0 < acceptance.accepted < acceptance.drafted
    assert acceptance.rounds < 3 * 39


def test_each_row_ends_with_its_eos(model):
    free, _ = speculative.new_tokens(model, PROMPTS, 40)
    eos = int(free[0, 6])
    tokens, _ = speculative.new_tokens(model, PROMPTS, 40, eos=eos)
    np.testing.assert_array_equal(tokens, generate.new_tokens(model, PROMPTS, 40, eos=eos))
    assert (tokens[0, 6:] == eos).all() and (tokens != free).any()


def test_scores_that_are_no_numbers_are_refused(model):
    graphdef, params, buffers = model
    damaged = params | {"embedding": params["embedding"].at[4].set(jnp.nan)}  # what the second prompt says
    with pytest.raises(UserError, match="scores are NaN after 1 of 2 prompts"):
        speculative.new_tokens((graphdef, damaged, buffers), [[5], [4]], 1)


def test_caches_that_grow_lose_nothing(model, monkeypatch):
    """Nor does the last of them end too soon for rows that others are ahead of; most prompts have no padding."""
    drawn = {"sampling": Sampling(0.3), "seed": 8}
    plain = generate.new_tokens(model, MANY, 2 * LENGTH_MULTIPLE, **drawn)
    at_once = speculative.new_tokens(model, MANY, 2 * LENGTH_MULTIPLE, **drawn)
    monkeypatch.setattr(cache_lengths, "SHORTEST", 8)
    in_stages = speculative.new_tokens(model, MANY, 2 * LENGTH_MULTIPLE, **drawn)
    for tokens, acceptance in at_once, in_stages:
        np.testing.assert_array_equal(tokens, plain)
        assert acceptance == at_once[1]


def test_a_text_that_ends_with_its_first_token_takes_no_round(model):
    """For no more are wanted, or for it is the eos."""
    plain = generate.new_tokens(model, PROMPTS[:1], 40)
    for wanted, eos in ((1, NO_EOS), (40, int(plain[0, 0]))):
        tokens, acceptance = speculative.new_tokens(model, PROMPTS[:1], wanted, eos=eos)
        assert (tokens == plain[0, 0]).all() and (acceptance.rounds, acceptance.rate) == (0, 0)


def test_rows_that_have_ended_count_no_more(model):
    _, together = speculative.new_tokens(model, MANY, 40)
    alone = [speculative.new_tokens(model, [prompt], 40)[1] for prompt in MANY]
    assert len({each.rounds for each in alone}) > 1
    assert together.rounds == sum(each.rounds for each in alone)
    assert together.accepted == sum(each.accepted for each in alone)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_drafts_are_what_the_modules_say_of_the_whole_text(model, prompt):
    """Their caches, rejected drafts overwritten, stand for the text: rounds counted on a full forward pass agree."""
    graphdef, params, buffers = model
    depths = len(params["mtp"])
    _, acceptance = speculative.new_tokens(model, [prompt], 24)
    text = np.concatenate([prompt, generate.new_tokens(model, [prompt], 30)[0]])[None]
    decoder = merge(graphdef, params, buffers)
    states = jax.jit(Decoder.__call__)(decoder, text, np.arange(text.shape[1])[None], np.ones_like(text)).mtp
    guesses = [np.asarray(decoder.logits(hidden).argmax(-1)[0]) for hidden in states]
    newest, rounds, accepted = len(prompt), 0, 0
    while newest < len(prompt) + 23:
        right = [guesses[depth][newest - 1] == text[0, newest + depth + 1] for depth in range(depths)]
        kept = int(np.cumprod(right).sum())
        newest, rounds, accepted = newest + kept + 1, rounds + 1, accepted + kept
    assert (acceptance.rounds, acceptance.accepted) == (rounds, accepted)


def test_drafts_that_are_always_right_save_their_rounds():
    """Layers that add nothing leave a chain: the next token depends on this one alone, and the modules know it."""
    graphdef, params, buffers = initialise(config(2), jax.random.key(1))
    silent = ("out", "down")

    def quiet(path, leaf):
        return jnp.zeros_like(leaf) if path[-1].key in silent else leaf

    params = jax.tree_util.tree_map_with_path(quiet, params)
    only_embedding = jnp.concatenate([jnp.eye(32), jnp.zeros((32, 32))])
    for module in params["mtp"].values():
        module["project"] = only_embedding
    model = graphdef, params, buffers
    tokens, acceptance = speculative.new_tokens(model, PROMPTS, 40)
    np.testing.assert_array_equal(tokens, generate.new_tokens(model, PROMPTS, 40))
    assert acceptance.rate == 1.0
    assert acceptance.rounds == 3 * 13  # the prefill gives one token, a round three


def test_rings_have_room_for_the_drafts_of_many_modules():
    """What a rejected draft takes the place of is read no more, however many of them there are."""
    attention = {"layer_types": ("hca", "window"), "sliding_window": 6, "hca_rate": 4, "o_groups": 1, "o_lora_rank": 8}
    window = dataclasses.replace(config(12), head_dim=16, mlp_layer_types=("dense",), **attention)
    model = initialise(window, jax.random.key(1))
    tokens, acceptance = speculative.new_tokens(model, PROMPTS, 40)
    np.testing.assert_array_equal(tokens, generate.new_tokens(model, PROMPTS, 40))
    assert acceptance.accepted < acceptance.drafted


def test_a_model_without_modules_is_refused():
    with pytest.raises(UserError, match="no multi-token prediction module"):
        speculative.new_tokens(initialise(config(0), jax.random.key(0)), PROMPTS, 4)
