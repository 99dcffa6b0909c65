"""What experts have learned: whether domains prefer some of them, and what a model loses without others.

E experts  N domains
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from deepseek_jax.config import Experiment
from deepseek_jax.errors import UserError
from deepseek_jax.models.tree import merge
from deepseek_jax.studies.measures import text
from deepseek_jax.train.checkpoints.restore import Trained
from deepseek_jax.train.metrics import by_layer

BATCHES = 4


def specialisation(trained: Trained) -> dict[str, float]:
    """How much expert loads differ between domains: the Jensen-Shannon divergence in nats, mean over layers.

    0: all domains have the same loads; ln N: no expert serves two domains.  {} for a model without experts.
    """
    if not trained.experiment.model.num_moe_layers:
        return {}
    domains = len(text.corpus(trained).domains)
    loads = [_loads(trained.graphdef, trained.params, trained.buffers, batch, domains) for batch in _batches(trained)]
    layers = by_layer(jax.tree.map(lambda *of: np.sum(of, axis=0), *map(jax.device_get, loads)))
    return {"specialisation": float(np.mean([divergence(load_NE) for load_NE in layers.values()]))}


specialisation.gives = ("specialisation",)


def _batches(trained: Trained):
    return text.batches(trained, BATCHES)


def divergence(load_NE: np.ndarray) -> float:
    """The Jensen-Shannon divergence of the rows' distributions, equally weighted; rows without any load are ignored."""
    load_NE = load_NE[load_NE.sum(axis=1) > 0]
    share_NE = load_NE / load_NE.sum(axis=1, keepdims=True)
    return float(_entropy(share_NE.mean(axis=0)) - np.mean([_entropy(share_E) for share_E in share_NE]))


def _entropy(share_E: np.ndarray) -> float:
    used = share_E[share_E > 0]
    return float(-(used * np.log(used)).sum())


@functools.partial(jax.jit, static_argnums=(0, 4))
def _loads(graphdef, params, buffers, batch, domains):
    """Loads [... N E] of each domain's tokens alone, keyed like the metric router/load."""
    model = merge(graphdef, params, buffers)

    def of_domain(domain):
        segment_ids = jnp.where(batch["domain_ids"] == domain, batch["segment_ids"], 0)
        routers = model(batch["tokens"], batch["positions"], segment_ids).routers
        return {block: report.load_E for block, report in routers.items()}

    return jax.tree.map(lambda *of: jnp.stack(of, axis=-2), *(of_domain(domain) for domain in range(domains)))


def shared_for_routed(experiment: Experiment, params: dict, buffers: dict):
    """The shared expert is taken out and each token goes to one more routed expert (DeepSeekMoE, section 4.5)."""
    model = experiment.model
    if not model.n_shared_experts:
        raise UserError("the model has no shared expert to take out.")
    changed = dataclasses.replace(model, n_shared_experts=0, num_experts_per_tok=model.num_experts_per_tok + 1)
    return dataclasses.replace(experiment, model=changed), _without(params, "shared"), buffers


def _without(tree: dict, name: str) -> dict:
    return {
        key: _without(value, name) if isinstance(value, dict) else value for key, value in tree.items() if key != name
    }


def mask_top(count: int) -> Callable:
    """Makes an edit: each token's `count` best experts are passed over (DeepSeekMoE, section 4.5, figure 4)."""

    def edit(experiment: Experiment, params: dict, buffers: dict):
        model = dataclasses.replace(experiment.model, masked_top_experts=count)
        return dataclasses.replace(experiment, model=model), params, buffers

    edit.__name__, edit.__doc__ = f"mask_top_{count}", f"each token's {count} best experts are passed over"
    return edit
