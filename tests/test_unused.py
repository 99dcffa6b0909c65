"""Settings that are said to have no effect have none, and the others of the same tables have one."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from rich.console import Console

from deepseek_jax import fields, unused
from deepseek_jax.config import (
    FAMILIES,
    OPTIMIZERS,
    SCHEDULES,
    DataConfig,
    Experiment,
    OptimizerConfig,
    PruneConfig,
    RouterConfig,
    ScheduleConfig,
    SupervisedExperiment,
    TrainConfig,
)
from deepseek_jax.data.sets.config import ColumnsConfig, DatasetConfig, ScenesConfig
from deepseek_jax.data.sets.registry import input_of, open_set
from deepseek_jax.models import checks
from deepseek_jax.models.config import RopeScaling
from deepseek_jax.models.hybrid.config import AttentionConfig, ConvolutionConfig, HybridConfig, RecurrentConfig
from deepseek_jax.tasks.config import ObjectiveConfig
from deepseek_jax.train.optim.optimizer import make_optimizer
from deepseek_jax.train.optim.schedules import learning_rate
from deepseek_jax.train.setup import prepare
from deepseek_jax.train.state import make_state
from deepseek_jax.views.pruned import pruned_view
from tests.train import tiny

OTHERS = {  # valid values of settings that are not numbers
    "model.topk_method": "greedy",
    "prune.scope": "global",
    "prune.pattern": "2:4",
    "optimizer.schedule.milestones": (0.3, 0.7),
    "arithmetic.ranges": ("out=3.5",),
    "data.weights": "prose=1",
    "data.text_field": "body",
    "augment.text.thesaurus": "wordnet",
    "model.sequence": "cells",
    "model.readout": "mean",
    "model.convolution.norm": "batch",
    "model.convolution.activation": "tanh",
    "model.convolution.pool": "average",
    "model.convolution.kind": "blocks",  # the other kind uses some of the settings
}


def other(key: str, value):
    """Another valid value of a setting."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, str | tuple):
        return OTHERS.get(key, "something")
    return value + 2 if isinstance(value, int) else value + 0.03


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "plateau"])  # which waits for the loss
def test_schedules_depend_on_the_rest(name):
    def rates(schedule):
        rate = learning_rate(OptimizerConfig(schedule=schedule), 100)
        return [float(rate(step)) for step in range(0, 100, 3)]

    plain = ScheduleConfig(name=name, step_every=11)
    for key in set().union(*SCHEDULES.values()):
        value = other(f"optimizer.schedule.{key}", getattr(plain, key))
        used = key in SCHEDULES[name]
        assert (rates(dataclasses.replace(plain, **{key: value})) != rates(plain)) == used, key


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_depend_on_the_rest(name):
    params = {"kernel": jnp.array([[0.3, -0.2], [0.1, 0.4]]), "scale": jnp.array([0.5, -1.0])}
    axes = {"kernel": ("embed", "mlp"), "scale": ("embed",)}

    def after_three_steps(config):
        optimizer, now = make_optimizer(config, 9, axes), params
        state = optimizer.init(now)
        for factor in (0.1, -0.01, -0.1):
            gradients = {name: leaf * factor for name, leaf in params.items()}
            updates, state = optimizer.update(gradients, state, now, value=jnp.array(1.0))
            now = {name: leaf + updates[name] for name, leaf in now.items()}
        return [leaf.tolist() for leaf in now.values()]

    plain = OptimizerConfig(name=name, weight_decay=0.0, eps=1e-4)
    for key in ("b1", "b2", "eps"):
        changed = dataclasses.replace(plain, **{key: getattr(plain, key) * 0.5})
        assert (after_three_steps(changed) != after_three_steps(plain)) == (key in OPTIMIZERS[name]), key


def with_other_values(experiment, keys):
    values = dataclasses.asdict(experiment)
    for key in keys:
        *sections, name = key.split(".")
        node = values
        for section in sections:
            node = node[section]
        node[name] = other(key, node[name])
    return fields.build(values, "a test")


def step_of(experiment) -> str:
    """The text of the training step's program."""
    setup = prepare(experiment, Console(quiet=True))
    batches = setup.train_batches()
    count = max(experiment.train.batch_size // (experiment.train.microbatch_size or experiment.train.batch_size), 1)
    batch = setup.place([next(batches) for _ in range(count)])
    return setup.compiled_step().lower(setup.abstract, batch).as_text()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tmp_path_factory.mktemp("corpus")


V4 = dataclasses.replace(tiny.ROUTED, head_dim=16, o_groups=1, o_lora_rank=8, index_head_dim=8, n_group=1)
YARN = RopeScaling(factor=4.0)
MODELS = {
    "mla": tiny.MOE,
    "gqa": dataclasses.replace(tiny.DENSE, layer_types=("gqa",), num_key_value_heads=1, head_dim=8),
    "window attention with YaRN": dataclasses.replace(V4, layer_types=("window",), rope_scaling=YARN),
    "compressing attention with YaRN": dataclasses.replace(V4, layer_types=("csa",), rope_scaling=YARN),
    "experts without biases": dataclasses.replace(tiny.ROUTED, topk_method="greedy", n_group=1, topk_group=1),
    "hash routing": dataclasses.replace(tiny.ROUTED, num_hash_layers=1),
    "unconstrained streams": dataclasses.replace(tiny.DENSE, hc_mult=2, hc_manifold=False),
}


@pytest.mark.parametrize("model", MODELS)
def test_the_program_of_a_decoder_does_not_depend_on_them(corpus, model):
    experiment = tiny.experiment(corpus, MODELS[model])
    keys = unused.idle_keys(experiment).keys() & fields.leaf_types("language_model").keys()
    keys -= {"loss.sequence_balance", "loss.batch_balance"}  # without experts: weights of a loss of 0
    assert len(keys) > 40
    assert step_of(with_other_values(experiment, keys)) == step_of(experiment)


@pytest.mark.parametrize(
    "model",
    [
        HybridConfig(recurrent=RecurrentConfig(kind="none"), readout="mean"),
        HybridConfig(convolution=ConvolutionConfig(filters=()), attention=AttentionConfig(num_heads=0)),
    ],
    ids=["no recurrence", "no convolution, no attention"],
)
def test_the_program_of_a_hybrid_network_does_not_depend_on_them(model):
    sized = dataclasses.replace(model, height=8, width=8)
    experiment = SupervisedExperiment(model=sized, dataset=DatasetConfig(name="digits"), train=TrainConfig(steps=9))
    idle = unused.idle_keys(experiment).keys() & fields.leaf_types("supervised").keys()
    keys = [key for key in idle if "pipeline" not in key]  # refused for hybrid networks
    assert step_of(with_other_values(experiment, keys)) == step_of(experiment)


def test_pools_and_readouts_of_a_table_change_no_number():
    """A table is a sequence of one step.  The program does depend on them, so its results are compared."""
    table = SupervisedExperiment(
        dataset=DatasetConfig("diabetes"), objective=ObjectiveConfig("mse"), train=TrainConfig(steps=9)
    )
    keys = ["model.readout", "model.convolution.pool", "model.convolution.pool_size"]

    def first_step(experiment):
        setup = prepare(experiment, Console(quiet=True))
        state = make_state(setup.program, setup.optimizer, setup.abstract)
        measured = setup.compiled_step()(state, next(setup.inputs()))[1]
        return [float(measured[name]) for name in ("loss/total", "grad_norm", "param_norm")]

    assert {*keys} <= unused.idle_keys(table).keys()
    assert first_step(with_other_values(table, keys)) == first_step(table)


def test_boxes_found_in_the_map_do_not_depend_on_its_order_as_a_sequence():
    model = HybridConfig(recurrent=RecurrentConfig(kind="none"), attention=AttentionConfig(num_heads=0))
    scenes = DatasetConfig("scenes", scenes=ScenesConfig(count=30, canvas=40))
    boxes = SupervisedExperiment(
        model=model, dataset=scenes, objective=ObjectiveConfig("boxes"), train=TrainConfig(steps=9)
    )
    assert "model.sequence" in unused.idle_keys(boxes)
    assert step_of(with_other_values(boxes, ["model.sequence"])) == step_of(boxes)


@pytest.mark.parametrize(
    "experiment, key, why",
    [
        (Experiment(), "tune.lora.dora", "tune.lora.rank is 0"),
        (Experiment(prune=PruneConfig("magnitude", pattern="2:4")), "prune.sparsity", "prune.pattern is 2:4"),
        (Experiment(), "model.csa_rate", "the model's attention is mla"),
        (Experiment(), "loss.indexer_weight", "the model has no indexer"),
        (Experiment(model=MODELS["hash routing"]), "model.n_group", "the model's feed-forward is hash_moe"),
        (Experiment(), "train.ramp_fraction", "train.ramp_start is 0"),
        (Experiment(), "data.text_field", "no file or directory of texts is named"),
        (Experiment(model=tiny.DENSE), "router.bias_update_rate", "the model has no routed experts"),
        (Experiment(data=DataConfig(source="prose")), "data.weights", "data.source is prose"),
        (SupervisedExperiment(), "objective.huber_delta", "objective.name is cross_entropy"),
        (SupervisedExperiment(), "model.vocab_size", "digits is of kind image"),
        (SupervisedExperiment(), "dataset.images.width", "dataset.name is digits"),
        (SupervisedExperiment(), "dataset.scenes.most", "dataset.name is digits"),
        (SupervisedExperiment(), "eval.samples", "only language models generate texts"),
        (SupervisedExperiment(), "augment.image.keep_box", "objective.name is cross_entropy"),
    ],
)
def test_the_reason_is_said(experiment, key, why):
    assert unused.sentences(experiment, ["train.steps", key]) == [f"{key} has no effect: {why}."]


def test_every_key_exists():
    known = {key for family in FAMILIES for key in fields.leaf_types(family)}
    listed = {key for _, _, keys in unused.SWITCHES for key in keys} | {switch for switch, _, _ in unused.SWITCHES}
    for section, uses in unused.CHOICES.items():
        listed |= {f"{section}.{key}" for key in set().union(*uses.values())}
    listed |= {key for _, keys in unused.NOT_OF_ATTENTION for key in keys}
    assert listed | {*unused.OF_EXPERTS, *unused.FILES} <= known


@pytest.mark.parametrize("name", ["digits", "diabetes", "co2"])  # the others take longer to read
def test_sets_are_of_the_kind_that_is_said_of_them(name):
    assert open_set(DatasetConfig(name=name)).input == input_of(DatasetConfig(name=name))


@pytest.mark.parametrize(
    "dataset, used, idle",
    [
        (DatasetConfig("services"), {"model.embed_dim", "dataset.length"}, {"model.sequence", "dataset.standardise"}),
        (DatasetConfig("a.csv", columns=ColumnsConfig(text="a")), {"model.embed_dim"}, {"model.channels"}),
        (DatasetConfig("a.csv", columns=ColumnsConfig(text="a")), {"dataset.columns.label"}, {"dataset.columns.xywh"}),
        (DatasetConfig("a.csv", columns=ColumnsConfig(image="a", boxes="b")), {"dataset.columns.xywh"}, set()),
        (DatasetConfig("a.csv", columns=ColumnsConfig(image="a")), {"model.sequence", *unused.FILES}, {"model.length"}),
        (DatasetConfig("tfds:a"), {"model.embed_dim", "model.sequence", *unused.FILES}, set()),
        (DatasetConfig("co2"), {"model.length", "dataset.series.season"}, {"dataset.seed", "model.height"}),
        (DatasetConfig("fashion"), {"dataset.val", "dataset.seed"}, {"dataset.test"}),
        (DatasetConfig("scenes"), {"dataset.seed", "model.sequence", "dataset.scenes.most"}, {"model.embed_dim"}),
        (DatasetConfig("diabetes"), {"model.convolution.norm"}, {"model.readout", "model.convolution.pool_size"}),
        (DatasetConfig("digits"), {"model.readout", "model.convolution.pool"}, set()),
    ],
)
def test_a_set_decides_which_settings_of_hybrid_networks_are_used(dataset, used, idle):
    found = unused.idle_keys(SupervisedExperiment(dataset=dataset)).keys()
    assert idle <= found and not used & found


def test_nothing_is_said_of_a_part_of_ones_own(monkeypatch):
    monkeypatch.setitem(OPTIMIZERS, "own", ("b1", "b2", "eps", "nesterov"))
    monkeypatch.setitem(SCHEDULES, "own", tuple(set().union(*SCHEDULES.values())))
    monkeypatch.setitem(checks.OF_FEED_FORWARD, "own", checks.EXPERTS)
    model = dataclasses.replace(tiny.ROUTED, mlp_layer_types=("own",), topk_method="greedy")
    own = OptimizerConfig(name="own", schedule=ScheduleConfig(name="own"))
    idle = unused.idle_keys(Experiment(model=model, optimizer=own))
    assert not [key for key in idle if key.startswith(("optimizer.", "model.n_group", "router.bias"))]


def test_texts_are_found_by_their_field_only_in_files():
    for data in (DataConfig("a.jsonl"), DataConfig(weights="prose=1,a.jsonl=1")):
        assert "data.text_field" not in unused.idle_keys(Experiment(data=data))
    for data in (DataConfig("code"), DataConfig(weights="prose=1,code=1")):
        assert "data.text_field" in unused.idle_keys(Experiment(data=data))


def test_later_updates_of_the_masks_of_a_pattern_change_nothing():
    """Therefore prune.every has no effect: what is pruned has the score 0."""
    weights = jax.random.normal(jax.random.key(0), (9, 16, 4))  # after each step

    def masks_after(every):
        config = PruneConfig("magnitude", pattern="2:4", begin=0.2, end=0.8, every=every)
        view = pruned_view(config, len(weights))
        buffers = view.split({"kernel": weights[0]}, {})[1]
        for step, weight in enumerate(weights):
            buffers = view.update({"kernel": weight}, buffers, step)
        return buffers["masks"]["kernel"]

    assert (masks_after(1) == masks_after(5)).all() and 0 < masks_after(1).mean() < 1


def test_biases_of_a_checkpoint_are_recentred_even_at_a_rate_of_0():
    idle = unused.idle_keys(Experiment(router=RouterConfig(bias_update_rate=0.0)))
    assert "router.bias_update_until" in idle and "router.recentre_bias" not in idle
