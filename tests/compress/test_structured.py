"""Structurally pruned models compute what the large ones compute with zeros in place of the removed parts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.compress import cuts, decoder_cuts, experts, structured
from deepseek_jax.compress.config import PruneConfig
from deepseek_jax.errors import UserError
from deepseek_jax.models import checks, tree
from deepseek_jax.models.attention.kinds import KINDS
from deepseek_jax.models.hybrid import config as hybrid_config
from deepseek_jax.models.hybrid.config import AttentionConfig, ConvolutionConfig, HybridConfig, RecurrentConfig
from deepseek_jax.models.hybrid.network import Hybrid
from deepseek_jax.models.tree import flatten
from deepseek_jax.train.checkpoints.restore import Trained
from deepseek_jax.views.matrices import LINEAR, matrices
from tests.compress.sources import module, source_of
from tests.models.hybrids import IMAGE, TEXT
from tests.parallel.curves import MODELS

V3 = dataclasses.replace(MODELS["v3"], num_hidden_layers=2)
GQA = dataclasses.replace(
    V3, layer_types=("gqa",), num_key_value_heads=4, head_dim=4, attention_bias=True, mlp_bias=True, q_lora_rank=0,
    num_hidden_layers=1, num_nextn_predict_layers=0,
)  # fmt: skip
V4 = dataclasses.replace(MODELS["v4"], o_groups=2)
MIXED = dataclasses.replace(
    V4, layer_types=("gqa", "window", "mla"), num_hidden_layers=3, num_attention_heads=8, num_key_value_heads=4,
    num_nextn_predict_layers=0, mlp_layer_types=("dense",), hc_mult=0, o_groups=4,
)  # fmt: skip
DEEP = HybridConfig(
    height=8, width=8, channels=2,
    convolution=ConvolutionConfig((6, 4), convs_per_block=2, norm="batch"),
    recurrent=RecurrentConfig("gru", 6, layers=2, bidirectional=True),
    attention=IMAGE.attention,
)  # fmt: skip
LITE = dataclasses.replace(DEEP, channels=3, convolution=ConvolutionConfig(kind="efficientnet_lite0", stages=1))
BARE = dataclasses.replace(LITE, recurrent=RecurrentConfig("none"), attention=AttentionConfig(num_heads=0))
PLAIN = dataclasses.replace(IMAGE, recurrent=RecurrentConfig("none"), attention=AttentionConfig(num_heads=0))

SLOWLY = pytest.mark.slow
CASES = {
    "v3": (V3, ("heads", "hidden", "expert-hidden")),
    "gqa": (GQA, ("heads", "hidden")),
    "v4": (V4, ("heads", "expert-hidden")),
    "mixed": (MIXED, ("heads",)),
    "deep": (DEEP, ("heads", "units", "channels")),
    "shallow": (IMAGE, ("units", "channels")),
}


def outputs(of: Trained):
    return _outputs(tree.split(jax.eval_shape(lambda: module(of.config)))[0], of.params, of.buffers)


@jax.jit(static_argnums=0)
def _outputs(graphdef, params, buffers):
    network = tree.merge(graphdef, params, buffers)
    if isinstance(network, Hybrid):
        size = network.config.height, network.config.width
        return network(jax.random.normal(jax.random.key(2), (3, *size, 2)))[0]
    tokens = jax.random.randint(jax.random.key(2), (2, 16), 0, network.config.vocab_size)
    positions = jnp.broadcast_to(jnp.arange(16), (2, 16))
    return network.logits(network(tokens, positions, jnp.ones((2, 16), jnp.int32)).hidden)


def even(of: Trained) -> dict:
    """Input moments as if all inputs had the same magnitude."""
    flat = flatten(of.params)
    linear = {path: each for path, each in matrices(flat).items() if each.kind == LINEAR}
    return {path: jnp.ones(each.fold(flat[path]).shape[:2]) for path, each in linear.items()}


SLOW = ("gqa", "v4", "shallow")


@pytest.mark.parametrize("name", [pytest.param(each, marks=SLOWLY) if each in SLOW else each for each in CASES])
def test_a_pruned_model_computes_what_the_large_one_with_zeros_does(name):
    model, kinds = CASES[name]
    smaller = large = source_of(model)
    for kind in kinds:
        smaller = structured.remover(kind)(smaller, PruneConfig(sparsity=0.5), even(smaller)).source
        large = zeroed(large, kind)
    assert smaller.config != model and smaller.experiment.model == smaller.config
    shapes = jax.tree.map(jnp.shape, (smaller.params, smaller.buffers))
    assert shapes == jax.tree.map(jnp.shape, tree.split(jax.eval_shape(lambda: module(smaller.config)))[1:])
    np.testing.assert_allclose(outputs(smaller), outputs(large), rtol=1e-5, atol=1e-5)


def zeroed(given: Trained, kind: str) -> Trained:
    """The unpruned model with zeros in place of everything that pruning half of `kind` would remove."""
    flat = {path: np.array(leaf) for path, leaf in cuts.arrays(given).items()}
    _, found = structured.FINDERS[given.experiment.family][kind](given.config, flat, 0.5)
    choices = [(cut, cuts.strongest(cuts.importance(cut, flat, even(given)), cut.keep)) for cut in found]
    for cut, chosen in choices:
        assert (chosen.sum(axis=1) == cut.keep).all()
        for part in cut.parts:
            sets = flat[part.path].reshape(len(chosen), *flat[part.path].shape[cut.leading :])
            for one, units in zip(sets, chosen, strict=True):
                np.moveaxis(one, part.dim, 0)[part.places[:, ~units].ravel()] = 0
    return cuts.with_arrays(given, given.config, flat)


def test_units_with_the_least_effect_are_removed():
    given = source_of(V3)
    weak = given.params["layers"]["0-0"]["feed_forward"]["down"].at[:, ::2].multiply(1e-3)
    given.params["layers"]["0-0"]["feed_forward"]["down"] = weak
    removed = structured.remover("hidden")(given, PruneConfig(sparsity=0.5), even(given))
    np.testing.assert_array_equal(removed.source.params["layers"]["0-0"]["feed_forward"]["down"], weak[:, 1::2])
    assert removed.left["layers/0-0/feed_forward/down"] == (weak.size // 2, weak.size) and removed.share == 0.5


def test_the_reported_share_is_of_whole_heads_removed():
    given = source_of(V3)
    removed = structured.remover("heads")(given, PruneConfig(sparsity=0.3), even(given))
    assert removed.source.config.num_attention_heads == 6 and removed.share == 0.25


@pytest.mark.parametrize("method", [experts.drop, experts.merge])
@pytest.mark.parametrize(
    "model",
    [pytest.param(dataclasses.replace(V3, n_group=2, topk_group=1), id="v3"), pytest.param(V4, id="v4", marks=SLOWLY)],
)
def test_removing_unused_experts_keeps_the_others(method, model):
    """Every second expert is a copy of the one before it and receives almost no tokens; these are removed."""
    given = source_of(model)
    flat = {path: np.array(leaf) for path, leaf in cuts.arrays(given).items()}
    for path, leaf in flat.items():
        axis = leaf.ndim - {"gate": 3, "up": 3, "down": 3, "kernel": 1, "bias": 1}.get(path.rpartition("/")[2], 0)
        if "/experts/" in path or "/router/" in path and not path.endswith("table"):
            at = np.moveaxis(leaf, axis, 0)
            at[1::2] = at[::2]
    given, moments = cuts.with_arrays(given, model, flat), even(given)
    for path in (path for path in moments if path.endswith("experts/down")):
        moments[path] = moments[path].reshape(-1, 8, moments[path].shape[1]).at[:, 1::2].multiply(1e-6)
    smaller = method(given, PruneConfig(sparsity=0.5), moments).source
    assert smaller.config.n_routed_experts == 4
    for path, leaf in cuts.arrays(smaller).items():
        if "/experts/" in path:
            every = np.moveaxis(flat[path], leaf.ndim - 3, 0)[::2]
            np.testing.assert_allclose(np.moveaxis(leaf, leaf.ndim - 3, 0), every, rtol=1e-6, atol=1e-7)
        if path.endswith("table"):
            assert leaf.max() == 3 and (np.sort(leaf, axis=-1)[..., 0] != np.sort(leaf, axis=-1)[..., 1]).all()
    assert np.isfinite(outputs(smaller)).all()


def test_units_are_matched_before_experts_are_averaged():
    rng = np.random.default_rng(0)
    own = [rng.normal(size=shape) for shape in ((6, 5), (6, 5), (5, 6))]
    order = rng.permutation(5)
    other = [own[0][:, order], own[1][:, order], own[2][order]]
    for one, matched in zip(own, experts._matched(own, other)):
        np.testing.assert_array_equal(one, matched)
    for kept in range(3):  # each kernel alone tells the units apart
        mine, theirs = ([each * (part == kept) for part, each in enumerate(side)] for side in (own, other))
        np.testing.assert_array_equal(mine[kept], experts._matched(mine, theirs)[kept])


@pytest.mark.parametrize(
    ("method", "model", "share", "message"),
    [
        (experts.drop, V3, 0.9, "leaves 1 of 2 experts in each of 4 groups, but a token takes 2 from 2: at most 0"),
        (experts.merge, V3, 0.2, "removes none of 2 experts in each of 4 groups: one of them is already a"),
        (structured.remover("heads"), V3, 0.05, "removes none of the heads, which are removed whole.  Prune hidden"),
        (experts.drop, dataclasses.replace(GQA, mlp_layer_types=("dense",)), 0.5, "has no routed experts"),
        (structured.remover("channels"), V3, 0.5, "channels does not apply to runs/x.  Prune heads, hidden, exp"),
        (structured.remover("channels"), TEXT, 0.5, "channels cannot be removed: a group norm takes means"),
        (structured.remover("channels"), LITE, 0.5, "of efficientnet_lite0 hand .* Prune heads, units or single"),
        (structured.remover("channels"), BARE, 0.5, "the same channels .* to the next.  Prune single weights instead"),
        (structured.remover("heads"), BARE, 0.5, "runs/x has no heads to remove.  Prune single weights instead"),
        (structured.remover("units"), TEXT, 0.5, "units cannot be removed: attention.norm .*  Prune heads or single"),
    ],
)  # fmt: skip
def test_impossible_structured_pruning_is_refused(method, model, share, message):
    given = source_of(model)
    with pytest.raises(UserError, match=message):
        method(given, PruneConfig(sparsity=share), even(given))


def test_expert_energy_is_the_expected_squared_output():
    """For uncorrelated units: the sum over units of its second moment times the squared norm of its output weights."""
    rng = np.random.default_rng(0)
    down, moments = rng.normal(size=(2, 3, 5, 4)), rng.uniform(size=(6, 5))
    expected = [
        [sum(moments[3 * layer + e, i] * (down[layer, e, i] ** 2).sum() for i in range(5)) for e in range(3)]
        for layer in range(2)
    ]
    np.testing.assert_allclose(experts.energy(down, moments), expected)


def test_merged_experts_are_averaged_by_their_energy():
    """Expert 1 is twice expert 0: they merge into 3/4 of one plus 1/4 of the other.  Expert 2 stays alone."""
    rng = np.random.default_rng(0)
    flat = {f"layers/0-0/feed_forward/experts/{name}": rng.normal(size=(1, 3, 4, 4)) for name in experts.KERNELS}
    for leaf in flat.values():
        leaf[0, 1] = 2 * leaf[0, 0]
    before = {path: leaf.copy() for path, leaf in flat.items()}
    experts._average(flat, "layers/0-0/feed_forward/", np.array([[3.0, 1.0, 5.0]]), np.array([[0, 0, 2]]))
    for path, leaf in flat.items():
        np.testing.assert_allclose(leaf[0, 0], 1.25 * before[path][0, 0])
        np.testing.assert_array_equal(leaf[0, 2], before[path][0, 2])


def test_heads_of_an_unregistered_attention_are_refused(monkeypatch):
    given = source_of(V3)
    monkeypatch.delitem(decoder_cuts.TOGETHER, "mla")
    with pytest.raises(UserError, match="it is not known which arrays hold those of mla"):
        structured.remover("heads")(given, PruneConfig(sparsity=0.5), even(given))


@pytest.mark.parametrize(("method", "model"), [("units", DEEP), ("channels", PLAIN)])
def test_what_an_unregistered_head_reads_is_not_removed(method, model, monkeypatch):
    monkeypatch.setitem(hybrid_config.HEADS, "own", "numbers")
    given = source_of(dataclasses.replace(model, head="own"))
    with pytest.raises(UserError, match=f"{method} cannot be removed: it is not known .* of the head own read them"):
        structured.remover(method)(given, PruneConfig(sparsity=0.5), even(given))


def test_pruning_heads_of_a_custom_attention_prunes_its_key_heads(monkeypatch):
    monkeypatch.setitem(KINDS, "own", KINDS["gqa"])
    monkeypatch.setitem(checks.OF_ATTENTION, "own", checks.OF_ATTENTION["gqa"])
    monkeypatch.setitem(decoder_cuts.TOGETHER, "own", decoder_cuts.TOGETHER["gqa"])
    given = source_of(dataclasses.replace(GQA, layer_types=("own",), qk_rope_head_dim=GQA.head_dim))
    smaller = structured.remover("heads")(given, PruneConfig(sparsity=0.5), even(given)).source
    assert smaller.config.num_key_value_heads == GQA.num_key_value_heads // 2
    assert np.isfinite(outputs(smaller)).all()


def test_an_array_of_a_custom_attention_that_is_in_no_cut_is_named(monkeypatch):
    class Own(KINDS["gqa"]):
        def __init__(self, config, kind, *, rngs):
            super().__init__(config, kind, rngs=rngs)
            self.gate = tree.zeros((config.hidden_size, config.num_attention_heads), ("embed", "heads"))

    monkeypatch.setitem(KINDS, "own", Own)
    monkeypatch.setitem(checks.OF_ATTENTION, "own", checks.OF_ATTENTION["gqa"])
    monkeypatch.setitem(decoder_cuts.TOGETHER, "own", decoder_cuts.TOGETHER["gqa"])
    given = source_of(dataclasses.replace(GQA, layer_types=("own",), qk_rope_head_dim=GQA.head_dim))
    stays = (
        r"attention/gate would keep the shape \(1, 32, 8\), and the smaller model needs \(1, 32, 4\); .*decoder_cuts"
    )
    with pytest.raises(UserError, match=stays):
        structured.remover("heads")(given, PruneConfig(sparsity=0.5), even(given))
