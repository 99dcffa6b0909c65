"""Pruning masks against sorting: in each scope the smallest weights go, exactly as many as requested."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax import compiling
from deepseek_jax.compress import weights
from deepseek_jax.compress.config import PruneConfig
from deepseek_jax.errors import UserError
from deepseek_jax.models.tree import flatten
from deepseek_jax.views import masks
from deepseek_jax.views.matrices import Matrix
from deepseek_jax.views.pruned import pruned_matrices

EXPERTS = Matrix("linear", leading=2, inputs=1)  # [layers, experts, inputs, outputs]
OUT = Matrix("linear", leading=0, inputs=2)  # [heads, values, outputs]
CHOSEN = {"experts": EXPERTS, "out": OUT}


@pytest.fixture(scope="module")
def scores():
    keys = jax.random.split(jax.random.key(0))
    return {
        "experts": jnp.abs(jax.random.normal(keys[0], (2, 3, 8, 5))),
        "out": 3 * jnp.abs(jax.random.normal(keys[1], (4, 3, 10))),
    }


@pytest.mark.parametrize("share", [0.1, 0.5, 0.83])
def test_each_matrix_loses_its_smallest(scores, share):
    found = masks.largest(scores, CHOSEN, share, "layer")
    for path, matrix in CHOSEN.items():
        for score, mask in zip(matrix.fold(np.asarray(scores[path])), matrix.fold(np.asarray(found[path]))):
            gone = round(share * score.size)
            expected = score > np.sort(score.ravel())[gone - 1]
            np.testing.assert_array_equal(mask, expected)


def test_each_output_loses_its_smallest(scores):
    found = masks.largest(scores, CHOSEN, 0.25, "output")
    score, mask = (EXPERTS.fold(np.asarray(each["experts"])) for each in (scores, found))
    assert (mask.sum(axis=1) == 6).all()
    np.testing.assert_array_equal(mask, score > np.sort(score, axis=1)[:, 1:2])


def test_global_scope_compares_all_matrices(scores):
    found = masks.largest(scores, CHOSEN, 0.5, "global")
    flat = np.concatenate([np.ravel(scores[path]) for path in CHOSEN])
    kept = np.concatenate([np.ravel(found[path]) for path in CHOSEN])
    np.testing.assert_array_equal(kept, flat > np.sort(flat)[flat.size // 2 - 1])
    assert found["experts"].mean() < 0.5 < found["out"].mean()  # `out` has larger scores


def test_weights_are_counted_in_64_bits():
    """A stand-in for 2^32 weights, which would take gigabytes: row sums may be 32-bit, their sum must not."""
    rows = jnp.full(4, 2**30, jnp.int32)
    assert masks.count(types.SimpleNamespace(sum=lambda axis: rows)) == 2**32
    mask = jnp.arange(24).reshape(2, 3, 4) % 5 > 0
    assert masks.count(mask) == np.asarray(mask).sum()


@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
@pytest.mark.parametrize(("scope", "compared"), [("layer", 1280), ("output", 64), ("global", 3840)])
def test_exactly_the_requested_share_goes_despite_ties(scope, compared, share):
    """Scores take only four values, as those of quantised weights do, so ties are the rule."""
    scores = np.random.default_rng(0).integers(0, 4, (3, 64, 20)).astype(np.float32)
    mask = np.asarray(masks.largest({"w": scores}, {"w": Matrix("linear", 1, 1)}, share, scope)["w"])
    order = {"layer": (3, -1), "output": (3, 64, 20), "global": (1, -1)}[scope]
    scores, kept = scores.reshape(order), mask.reshape(order)
    assert ((~kept).sum(axis=1) == round(share * compared)).all()
    assert (np.where(kept, scores, np.inf).min(axis=1) >= np.where(kept, -np.inf, scores).max(axis=1)).all()


@pytest.mark.parametrize("scope", ["layer", "output"])
def test_among_equal_weights_those_removed_are_spread_evenly(scope):
    mask = np.asarray(masks.largest({"w": np.ones((64, 48))}, {"w": Matrix("linear", 0, 1)}, 0.5, scope)["w"])
    assert mask.mean() == 0.5
    for each in (mask.mean(axis=1), mask.mean(axis=0)):
        assert 0.3 < each.min() and each.max() < 0.7


@pytest.mark.parametrize("stay", [1, 2, 3])
def test_a_pattern_holds_along_the_inputs_of_every_output(scores, stay):
    found = masks.by_pattern(scores, CHOSEN, f"{stay}:4")
    for path, matrix in CHOSEN.items():
        score, mask = (matrix.fold(np.asarray(each[path])) for each in (scores, found))
        N, I, O = score.shape
        score, mask = (each.reshape(N, I // 4, 4, O) for each in (score, mask))
        assert (mask.sum(axis=2) == stay).all()
        assert (np.where(mask, score, np.inf).min(axis=2) > np.where(mask, -np.inf, score).max(axis=2)).all()


@pytest.mark.parametrize(("n", "m"), [(2, 4), (5, 6), (1, 12)])
def test_among_equal_scores_in_a_group_the_later_stay(n, m):
    scores = np.random.default_rng(0).integers(0, 3, (2, 12, 7)).astype(np.float32)
    order = np.argsort(scores.reshape(2, -1, m, 7), axis=2, kind="stable")
    expected = np.argsort(order, axis=2) >= m - n
    np.testing.assert_array_equal(masks.of_pattern(scores, n, m), expected.reshape(scores.shape))


def test_a_pattern_that_does_not_divide_is_refused_with_those_that_do():
    nine = {"stem": jax.ShapeDtypeStruct((9, 8), "float32"), "out": jax.ShapeDtypeStruct((4, 3, 8), "float32")}
    chosen = {"stem": Matrix("linear", 0, 1), "out": OUT}
    assert list(masks.divisible_by(chosen, nine, 4, "prune.pattern", given=False)) == ["out"]
    with pytest.raises(UserError, match="stem has 9 inputs, not a multiple of 4; leave it out"):
        masks.divisible_by(chosen, nine, 4, "prune.pattern", given=True)
    with pytest.raises(UserError, match="out has 12 inputs, not a multiple of 8; groups of 2, 4 fit"):
        masks.divisible_by({"out": OUT}, nine, 8, "prune.pattern", given=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sparsity": 1.0}, "prune.sparsity is 1.0; it must lie between 0 and 1, both excluded"),
        ({"pattern": "4:2"}, "prune.pattern is '4:2'; write N:M, as in 2:4, to keep"),
        ({"paths": "["}, r"prune.paths is '\[', which is not a regular expression"),
        ({"begin": 0.8}, "prune.begin is 0.8 and prune.end 0.6"),
    ],
)
def test_impossible_prune_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        PruneConfig(**settings)


def test_matrices_are_ranked_one_at_a_time(monkeypatch):
    """Ranking all at once took three times the memory of a float32 model, in addition to the model."""
    keys, settings = jax.random.split(jax.random.key(0)), PruneConfig(sparsity=0.5, scope="layer")
    params = {"head": jax.random.normal(keys[0], (8, 5)), "feed_forward": {"up": jax.random.normal(keys[1], (8, 6))}}
    given, jit = [], jax.jit
    monkeypatch.setattr(jax, "jit", lambda function, **how: given.append(how) or jit(function, **how))
    found = weights.find_masks(params, settings, None)
    assert compiling.LEAST_MEMORY.items() <= given[0]["compiler_options"].items()
    flat = flatten(params)
    sizes = {path: jnp.abs(flat[path]) for path in found}
    expected = masks.largest(sizes, pruned_matrices(settings, flat), 0.5, "layer")
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert found
