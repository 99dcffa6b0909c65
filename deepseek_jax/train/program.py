"""What the training step needs of a language model, as pure functions: parameters, axes, loss, scores.

B batch  S sequence  N domains
"""

import dataclasses
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from deepseek_jax.config import Experiment
from deepseek_jax.models import tree
from deepseek_jax.models.arithmetic import Arithmetic, give
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.decoder import Decoder, initialise
from deepseek_jax.models.flops import attention_a_token
from deepseek_jax.models.lazy import materialised
from deepseek_jax.models.moe.balance import update_biases
from deepseek_jax.models.moe.router import ROUTERS
from deepseek_jax.part_settings import Parts
from deepseek_jax.tasks import language_model
from deepseek_jax.train.optim import schedules
from deepseek_jax.views.arithmetic import chooser


def _as_they_are(params, buffers):
    return params, buffers


def _materialised(params, buffers):
    return materialised(params), buffers


def _all(buffers):
    return buffers


def _as_read(state, batch, update):
    return batch, {}


@dataclasses.dataclass(frozen=True)
class Program:
    """A task and its model as functions of plain dicts of arrays.

    make_parameters() -> (params, buffers), always the same ones; `axes` is a tree like params with a tuple of logical
        axis names per leaf, `buffer_axes` one like buffers.
    totals(batch) -> counts over the whole batch [K, M, S], by which sums are divided.
    scheduled(update) -> values that change over a run, at the update of that number: a dict passed to `loss`.
    loss(params, buffers, microbatch, totals, scheduled) -> (loss, aux): sums over the microbatch divided by the totals,
        so that losses and gradients of microbatches add up to those of the batch, however unequal their numbers of
        tokens.  aux is a dict of arrays that add up too.  `scheduled` also has "microbatch", its index in the step.
    update_buffers(params, buffers, aux, update) -> the buffers after that update, which produced `params`; aux is
        summed over the whole batch.
    score(params, buffers, batch [B, ...]) -> a dict of arrays that the family's Task.scores understands.
    to_model(params, buffers), from_model(params, buffers) -> (params, buffers): from what is trained to what `graphdef`
        takes, and back; both are the same unless views (train/views.py) wrap the program.
    rollouts(state, batch [K, M, S], update) -> (the batch to train on, scalars for metrics.jsonl under rollout/): the
        batch as it was read, unless the model is to learn from answers of its own (experiments/parts/grpo.py).
    own_buffers(buffers) -> the model's own ones, nested as they are among those that views keep.
    model: the program of the model itself if views wrap it; else None.
    adds_up: whether losses and aux of parts of a microbatch add up to the microbatch's: nothing in them depends on
        several sequences, counts once a microbatch, or is drawn at random.
    draws: whether `loss` draws random numbers from the run's seed, which is then compiled into it.
    parts: the settings of the parts from plugins, for a function that changes the program (Experiment.parts).
    made_of: a hashable key of all else that these functions close over; with the experiment and graphdef it identifies
        a program (train/program_cache.py).
    """

    graphdef: nnx.GraphDef
    axes: dict
    buffer_axes: dict
    make_parameters: Callable
    totals: Callable
    scheduled: Callable
    loss: Callable
    update_buffers: Callable
    score: Callable
    to_model: Callable = _materialised
    from_model: Callable = _as_they_are
    rollouts: Callable = _as_read
    own_buffers: Callable = _all
    model: "Program | None" = None
    adds_up: bool = False
    draws: bool = False
    parts: Parts = Parts()
    made_of: tuple = ()


def replicated_axes(axes: dict) -> dict:
    """A tree like `axes` of logical axes for arrays that every device holds whole."""
    return jax.tree.map(lambda names: (None,) * len(names), axes, is_leaf=lambda node: isinstance(node, tuple))


def microbatch_key(key: jax.Array, scheduled: dict) -> jax.Array:
    """The random key of an update's microbatch: a resumed run draws what an uninterrupted one would have drawn."""
    return jax.random.fold_in(jax.random.fold_in(key, scheduled["update"]), scheduled["microbatch"])


def changed(program: Program, changes: Iterable[Callable[[Program], Program]]) -> Program:
    """The program after functions of a user's own have changed it, one after the other."""
    for change in changes:
        program = change(program)
        # Its loss may have terms that are no sums over sequences: they must count as often on every mesh.
        program = dataclasses.replace(program, made_of=(*program.made_of, change), adds_up=False)
    return program


def language_model_program(
    experiment: Experiment, bytes_a_target: np.ndarray, choose: Callable[[str, int], Arithmetic] | None = None
) -> Program:
    """`bytes_a_target` [N]: mean bytes of text per token in each domain.

    `choose`: see models/arithmetic.give; None: as the experiment's `arithmetic` says.

    scheduled: "mtp", the weight of the MTP loss; "index_warmup", whether sparse attention still attends to all keys
    (None if it never does); "update", its number, if a router draws random numbers.  score: {"nats", "targets"}, each
    [N], summed over the batch, and what `next_token_nll` reports of experts.
    """
    config, train = experiment.model, experiment.train
    options = {
        "dtype": train.dtype,
        "remat": train.remat,
        "capacity_factor": experiment.router.capacity_factor,
        "pipeline_microbatches": train.pipeline_microbatches,
        "pipeline_rounds": train.pipeline_rounds,
    }
    key = jax.random.key(train.seed)
    abstract = jax.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(params=key), **options))
    graphdef, _, _ = tree.split(give(abstract, choose or chooser(experiment.arithmetic)))
    axes, buffer_axes = tree.logical_axes(abstract)

    def totals(batch):
        return language_model.totals(batch, 1 + config.num_nextn_predict_layers)

    mtp_at = schedules.mtp_weight(experiment.loss, train.steps)
    warmup_at = schedules.index_warmup(experiment.loss, train.steps)
    draws = any(ROUTERS[kind].draws for kind in config.feed_forward_kinds if kind in ROUTERS)
    bias_rate_at = schedules.bias_update_rate(experiment.router, train.steps)

    def scheduled(update):
        found = {"mtp": mtp_at(update), "index_warmup": warmup_at and warmup_at(update)}
        return found | ({"update": update} if draws else {})

    def loss(params, buffers, batch, totals, scheduled):
        model = tree.merge(graphdef, params, buffers)
        scheduled = scheduled | ({"key": microbatch_key(key, scheduled)} if draws else {})
        value, aux = language_model.loss(model, batch, totals, scheduled, experiment.loss)
        return value, aux | _counts(batch, config, bytes_a_target)

    def update_buffers(params, buffers, aux, update):
        return update_biases(buffers, aux["router/load"], bias_rate_at(update), experiment.router.recentre_bias)

    def score(params, buffers, batch):
        model = tree.merge(graphdef, params, buffers)
        nll, counted, routed = language_model.next_token_nll(model, batch, experiment.loss.chunk_tokens)
        domain = jax.nn.one_hot(batch["domain_ids"], len(bytes_a_target), dtype=jnp.float32)
        summed = {"nats": nll * counted, "targets": counted.astype(jnp.float32)}
        return {name: jnp.einsum("BS,BSN->N", each, domain) for name, each in summed.items()} | routed

    return Program(
        graphdef=graphdef,
        axes=axes,
        buffer_axes=replicated_axes(buffer_axes),
        make_parameters=lambda: initialise(config, key, **options)[1:],
        totals=totals,
        scheduled=scheduled,
        loss=loss,
        update_buffers=update_buffers,
        score=score,
        adds_up=not (draws or experiment.loss.batch_balance),
        draws=draws,
        parts=experiment.parts,
        made_of=tuple(bytes_a_target.tolist()),
    )


def _counts(batch: dict, config: ModelConfig, bytes_a_target: np.ndarray) -> dict:
    """Counts over a microbatch, for the metrics; "attention": see `attention_a_token`."""
    real, counted = batch["segment_ids"] > 0, language_model.targets(batch, 1)
    return {
        "tokens": real.sum(dtype=jnp.float32),
        "targets": counted.sum(dtype=jnp.float32),
        "bytes": (counted * jnp.take(jnp.asarray(bytes_a_target, jnp.float32), batch["domain_ids"])).sum(),
        "attention": (attention_a_token(config, batch["positions"] + 1) * real).sum(),
    }
