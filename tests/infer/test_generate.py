"""Generation with an untrained model: the tokens are meaningless, but what they depend on is tested."""

import jax
import jax.numpy as jnp
import pytest

from deepseek_jax.errors import UserError
from deepseek_jax.infer import cache_lengths
from deepseek_jax.infer.generate import generate, new_tokens
from deepseek_jax.infer.sampling import GREEDY, Sampling
from deepseek_jax.models.decoder import initialise
from deepseek_jax.models.tree import merge
from tests.infer.untrained import CONFIG

PROMPTS = [[5, 6, 7], [9] * 20, [11, 3, 8, 2, 40, 41]]
NO_EOS = -1


@pytest.fixture(scope="module")
def model():
    return initialise(CONFIG, jax.random.key(0))


def test_prompts_of_different_lengths_continue_as_they_would_alone(model):
    together = generate(model, PROMPTS, 12, eos=NO_EOS)
    assert together == [generate(model, [prompt], 12, eos=NO_EOS)[0] for prompt in PROMPTS]
    assert [len(tokens) for tokens in together] == [12, 12, 12]


def test_greedy_tokens_are_the_argmax_of_a_full_forward_pass(model):
    """Compared with the argmax of the whole text in one forward pass without a cache."""
    graphdef, *arrays = model
    found = generate(model, PROMPTS, 12, eos=NO_EOS)
    tokens = jnp.asarray([[*prompt, *new, *[0] * (20 - len(prompt))] for prompt, new in zip(PROMPTS, found)])

    @jax.jit
    def best(params, buffers):
        decoder = merge(graphdef, params, buffers)
        hidden = decoder(tokens, jnp.broadcast_to(jnp.arange(32), tokens.shape), jnp.ones_like(tokens)).hidden
        return (hidden @ decoder.head_weight()).argmax(axis=-1)

    for prompt, new, row in zip(PROMPTS, found, best(*arrays).tolist()):
        assert row[len(prompt) - 1 :][:12] == new


def test_a_text_ends_before_its_eos(model):
    free = generate(model, PROMPTS, 12, eos=NO_EOS)
    eos = free[0][4]
    for tokens, whole in zip(generate(model, PROMPTS, 12, eos=eos), free):
        assert tokens == (whole[: whole.index(eos)] if eos in whole else whole)
    ended = new_tokens(model, PROMPTS, 12, eos=eos)[0].tolist()
    assert ended == free[0][: free[0].index(eos)] + [eos] * (12 - free[0].index(eos))


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(1.0)], ids=["greedy", "drawn"])
def test_nan_scores_are_refused(model, sampling):
    graphdef, params, buffers = model
    damaged = params | {"embedding": params["embedding"].at[9].set(jnp.nan)}  # the second prompt's token
    with pytest.raises(UserError, match="scores are NaN after 1 of 3 prompts; look for NaN"):
        new_tokens((graphdef, damaged, buffers), PROMPTS, 1, sampling=sampling)


def test_growing_caches_change_no_token(model, monkeypatch):
    whole = generate(model, PROMPTS, 40, eos=NO_EOS)
    monkeypatch.setattr(cache_lengths, "SHORTEST", 16)
    assert cache_lengths.cache_lengths(32, 64) == (48, 72, 96)
    assert generate(model, PROMPTS, 40, eos=NO_EOS) == whole


@pytest.mark.parametrize("length, steps", [(32, 64), (32, 4064), (4000, 96), (512, 512)])
def test_cache_lengths_hold_the_prompt_first_and_everything_last(length, steps):
    lengths = cache_lengths.cache_lengths(length, steps)
    assert len(lengths) <= cache_lengths.STAGES and list(lengths) == sorted(set(lengths))
    assert lengths[0] > length and lengths[-1] == length + steps


def test_the_seed_determines_the_sampled_tokens(model):
    def draw(seed):
        return generate(model, PROMPTS, 12, eos=NO_EOS, sampling=Sampling(1.0, top_k=50, top_p=0.95), seed=seed)

    assert draw(0) == draw(0) != draw(1)


def test_an_empty_prompt_is_refused(model):
    with pytest.raises(UserError, match="empty"):
        generate(model, [[1], []], 4, eos=NO_EOS)
