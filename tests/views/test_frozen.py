"""Training only some parameters, chosen by path, layer or expert: the rest is unchanged, to the bit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deepseek_jax.compress.config import QuantizeConfig
from deepseek_jax.config import Experiment, OptimizerConfig, ScheduleConfig, SupervisedExperiment
from deepseek_jax.errors import UserError
from deepseek_jax.models.depth import distances
from deepseek_jax.models.lazy import materialised
from deepseek_jax.models.tree import flatten, unflatten
from deepseek_jax.train.optim.optimizer import make_optimizer
from deepseek_jax.tune import esft
from deepseek_jax.tune.config import LoraConfig, TuneConfig, experts_of
from deepseek_jax.views.frozen import frozen_view, trained_rows
from deepseek_jax.views.quantized import quantized_view

SHAPES = {
    "embedding": (8, 4),
    "layers/0-0/attention/q": (1, 4, 2, 2),
    "layers/1-3/attention/q": (3, 4, 2, 2),
    "layers/1-3/feed_forward/experts/gate": (3, 4, 4, 6),
    "layers/1-3/feed_forward/router/kernel": (3, 4, 4),
    "norm/scale": (4,),
    "head": (4, 8),
}


@pytest.fixture
def params():
    draw = np.random.default_rng(0)
    return unflatten({path: jnp.asarray(draw.normal(size=of)) for path, of in SHAPES.items()})


def trained(**settings) -> dict:
    """For each trained path, the index arrays of its trained entries; None for the whole array."""
    found = trained_rows(TuneConfig(**settings), SHAPES)
    return {path: [index.tolist() for index in rows] or None for path, rows in found.items()}


def test_trained_parameters_are_chosen_by_path_layer_or_expert():
    assert trained(train="^head$|norm") == {"norm/scale": None, "head": None}
    assert trained(train="attention", freeze="0-0") == {"layers/1-3/attention/q": None}
    last = {path: [[1, 2]] for path in SHAPES if "1-3" in path} | {"norm/scale": None, "head": None}
    assert trained(last_layers=2) == last
    assert trained(last_layers=3, freeze="head|norm|experts|router") == {"layers/1-3/attention/q": None}
    assert trained(last_layers=4).keys() == SHAPES.keys() - {"embedding"}
    assert trained(experts="1: 3 0; 3: 2") == {"layers/1-3/feed_forward/experts/gate": [[0, 0, 2], [0, 3, 2]]}


def test_with_adapters_nothing_else_is_trained_unless_named():
    paths = [*SHAPES, "adapters/layers/1-3/attention/q/a"]
    assert list(trained_rows(TuneConfig(lora=LoraConfig(rank=1)), paths)) == paths[-1:]
    assert list(trained_rows(TuneConfig(train="norm", lora=LoraConfig(rank=1)), paths)) == ["norm/scale", paths[-1]]


@pytest.mark.parametrize(
    "settings", [{"train": "head"}, {"last_layers": 2}, {"experts": "1: 3 0; 3: 2"}, {"freeze": "embed"}]
)
def test_a_frozen_view_restores_the_model_and_only_trained_entries_get_gradients(params, settings):
    view = frozen_view(TuneConfig(**settings))
    kept, buffers = view.split(params, {"bias": 1})
    whole, own = materialised(view.weights(kept, buffers, None))
    jax.tree.map(np.testing.assert_array_equal, whole, params)
    assert own == {"bias": 1}

    def loss(kept):
        return sum((leaf**2).sum() for leaf in jax.tree.leaves(materialised(view.weights(kept, buffers, None)[0])))

    moved = jax.tree.map(lambda leaf, slope: leaf - slope, kept, jax.grad(loss)(kept))  # leaf - 2 leaf = -leaf
    after = flatten(materialised(view.weights(moved, buffers, None)[0]))
    rows = trained_rows(TuneConfig(**settings), SHAPES)
    for path, before in flatten(params).items():
        expected = np.array(before)
        if path in rows:
            expected[rows[path] or ...] *= -1
        np.testing.assert_allclose(after[path], expected, rtol=1e-6, err_msg=path)
    axes = unflatten({path: tuple(map(str, range(len(of)))) for path, of in SHAPES.items()})
    of_kept, of_buffers = view.axes(axes, {})

    def lengths(tree):
        return jax.tree.map(len, tree, is_leaf=lambda node: isinstance(node, tuple))

    assert lengths(of_kept) == jax.tree.map(jnp.ndim, kept)
    assert lengths(of_buffers["frozen"]) == jax.tree.map(jnp.ndim, buffers["frozen"])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"train": "nowhere"},
            "tune.train is 'nowhere', which matches no parameter's path; there are embedding",
        ),
        ({"train": "head", "freeze": "head"}, "leaves nothing to train"),
        ({"last_layers": 5}, "tune.last_layers is 5; the model has 4"),
        ({"experts": "0: 1"}, "tune.experts names layer 0, which has no routed experts"),
    ],
)
def test_tune_settings_that_match_nothing_are_refused(settings, said):
    with pytest.raises(UserError, match=said):
        trained(**settings)


def test_the_experts_setting_is_parsed_and_checked(params):
    assert experts_of(esft.as_setting({1: [0, 3], 12: [2]})) == {1: [0, 3], 12: [2]}
    for text in ("1: a", "1: 2; 1: 3", "1"):
        with pytest.raises(UserError, match="write each layer once"):
            TuneConfig(experts=text)
    with pytest.raises(UserError, match="tune.experts names expert 4; .* holds 4, counted from 0"):
        frozen_view(TuneConfig(experts="1: 4")).split(params, {})
    with pytest.raises(UserError, match="leave out tune.freeze"):
        TuneConfig(experts="1: 3", freeze="layers/1")
    with pytest.raises(UserError, match="leave out tune.train"):
        TuneConfig(experts="1: 2", train="head")


def test_quantised_experts_cannot_be_trained(params):
    def views(**settings):
        return quantized_view(QuantizeConfig(weights="int4", **settings)), frozen_view(TuneConfig(experts="1: 3"))

    axes = unflatten({path: (None,) * len(of) for path, of in SHAPES.items()})
    rounding, tuning = views()
    for together in (
        lambda: tuning.split(*rounding.split(params, {})),
        lambda: tuning.axes(*rounding.axes(axes, {})),
    ):
        with pytest.raises(UserError, match="tune.experts names layer 1, .* quantize.weights"):
            jax.eval_shape(together)
    for settings in ({"paths": "attention"}, {"trained": True}):
        rounding, tuning = views(**settings)
        left, _ = jax.eval_shape(tuning.split, *jax.eval_shape(rounding.split, params, {}))
        assert set(flatten(left)) == {"layers/1-3/feed_forward/experts/gate"}


@pytest.mark.parametrize(
    ("settings", "found", "mend"),
    [
        ({"train": "^head$"}, "head", "name other matrices in quantize.paths"),
        ({"freeze": "embedding|head"}, "embedding", "leave it out"),
    ],
)
def test_a_pattern_that_matches_only_quantised_matrices_is_refused(params, settings, found, mend):
    tuning = frozen_view(TuneConfig(**settings))
    said = f"matches only what quantize.weights keeps rounded and untrained, such as {found}; {mend}"
    with pytest.raises(UserError, match=said):
        jax.eval_shape(lambda: tuning.split(*quantized_view(QuantizeConfig(weights="int8")).split(params, {})))
    trained = QuantizeConfig(weights="int8", trained=True)
    jax.eval_shape(lambda: tuning.split(*quantized_view(trained).split(params, {})))


def test_esft_chooses_the_fewest_experts_that_reach_the_threshold():
    shares = {1: np.array([0.1, 0.4, 0.3, 0.2]), 2: np.array([0.25, 0.25, 0.25, 0.25]), 3: np.array([0, 1.0, 0, 0])}
    assert esft.choose(shares, 0.7) == {1: [1, 2], 2: [0, 1, 2], 3: [1]}
    assert esft.choose(shares, 1.0) == {1: [0, 1, 2, 3], 2: [0, 1, 2, 3], 3: [1]}
    with pytest.raises(UserError, match="the threshold is 0"):
        esft.choose(shares, 0.0)


def test_distances_count_layers_from_the_output():
    far = distances(dict.fromkeys(SHAPES))
    assert far["head"] == far["norm/scale"] == 0 and far["embedding"] == 5
    np.testing.assert_array_equal(far["layers/1-3/attention/q"], [3, 2, 1])
    np.testing.assert_array_equal(
        distances({"layers/1-3/attention/q": 2, "head": None})["layers/1-3/attention/q"], [2, 1]
    )
    beside = {"layers/1-3/attention/q": 2, "layers/1-3/attention/out": None, "head": None}
    np.testing.assert_array_equal(distances(beside)["layers/1-3/attention/q"], [2, 1])
    hybrid = [
        "convolution/stem/kernel",
        "convolution/blocks/0/a",
        "convolution/blocks/1/a",
        "recurrent/a",
        "attention/a",
        "head/a",
    ]
    assert [int(far) for far in distances(dict.fromkeys(hybrid)).values()] == [5, 4, 3, 2, 1, 0]
    assert trained_rows(TuneConfig(last_layers=4), hybrid).keys() == set(hybrid[1:])


def steps(count: int, params: dict, **settings) -> dict:
    """Parameters by path after `count` of 10 steps of SGD with gradients of 1 and a constant rate of 1."""
    schedule = ScheduleConfig(name="constant")
    config = OptimizerConfig(
        name="sgd", peak_lr=1.0, b1=0.0, weight_decay=0.0, clip_norm=0.0, schedule=schedule, **settings
    )
    optimizer = make_optimizer(config, steps=10)
    state, ones = optimizer.init(params), jax.tree.map(jnp.ones_like, params)
    for _ in range(count):
        updates, state = optimizer.update(ones, state, params, value=0.0)
        params = jax.tree.map(jnp.add, params, updates)
    return flatten(params)


def test_layer_decay_lowers_rates_with_the_distance_from_the_output(params):
    moved = {path: -leaf for path, leaf in steps(1, jax.tree.map(jnp.zeros_like, params), layer_decay=0.5).items()}
    np.testing.assert_allclose(moved["head"], 1.0)
    np.testing.assert_allclose(moved["layers/1-3/attention/q"][:, 0, 0, 0], [0.125, 0.25, 0.5])
    np.testing.assert_allclose(moved["embedding"], 0.5**5)


def test_layers_are_unfrozen_one_after_another(params):
    """Five distances over half of ten steps: each layer starts one step after the one above it."""
    moved = {path: -leaf for path, leaf in steps(4, jax.tree.map(jnp.zeros_like, params), unfreeze=0.5).items()}
    np.testing.assert_array_equal(moved["head"], 4.0)
    np.testing.assert_array_equal(moved["layers/1-3/attention/q"][:, 0, 0, 0], [1.0, 2.0, 3.0])
    np.testing.assert_array_equal(moved["embedding"], 0.0)


def test_adams_first_steps_of_an_unfrozen_layer_have_the_size_of_the_rate(params):
    """Had Adam's bias correction counted the thousand steps of waiting, the first steps would be five times larger."""
    schedule = ScheduleConfig(name="constant")
    config = OptimizerConfig(
        name="adamw", peak_lr=1.0, b2=0.999, weight_decay=0.0, clip_norm=0.0, schedule=schedule, unfreeze=0.5
    )
    optimizer = make_optimizer(config, steps=2000)
    state, ones = optimizer.init(params), jax.tree.map(jnp.ones_like, params)

    @jax.jit
    def largest(state, _):
        updates, state = optimizer.update(ones, state, params, value=0.0)
        return state, jnp.abs(updates["embedding"]).max()

    sizes = jax.lax.scan(largest, state, length=1100)[1]
    np.testing.assert_array_equal(sizes[:1000], 0.0)
    np.testing.assert_allclose(sizes[1000:], 1.0, rtol=1e-3)


def test_frozen_layers_do_not_count_in_the_clipped_norm(params):
    """In the first step only the parameters after the layers move, and clipping takes only their norm."""
    schedule = ScheduleConfig(name="constant")
    config = OptimizerConfig(
        name="sgd", peak_lr=1.0, b1=0.0, weight_decay=0.0, clip_norm=1.0, schedule=schedule, unfreeze=0.9
    )
    optimizer = make_optimizer(config, steps=10)
    updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, params), optimizer.init(params), params, value=0.0)
    np.testing.assert_allclose(optax.tree.norm(updates), 1.0, rtol=1e-6)
    small = jax.tree.map(lambda leaf: jnp.full_like(leaf, 1e-4), params)
    updates, _ = optimizer.update(small, optimizer.init(params), params, value=0.0)
    np.testing.assert_allclose(updates["head"], -1e-4, rtol=1e-6, err_msg="a smaller norm is left as it is")


def test_layer_decay_and_unfreeze_are_refused_with_single_experts():
    with pytest.raises(UserError, match="leave them out with tune.experts"):
        Experiment(tune=TuneConfig(experts="1: 0"), optimizer=OptimizerConfig(layer_decay=0.9))
    with pytest.raises(UserError, match="leave them out with tune.experts"):
        SupervisedExperiment(tune=TuneConfig(experts="1: 0"), optimizer=OptimizerConfig(unfreeze=0.5))
