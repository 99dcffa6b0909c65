"""The router `moe_z`, V3's with a z-loss that keeps its logits small (ST-MoE, arXiv:2202.08906, equation 5).

    deepseek-jax train --config configs/v3_tiny.py --workdir runs/z \\
        --config.plugins=experiments.parts.z_loss --config.model.mlp_layer_types=dense,moe_z,moe_z,moe_z \\
        --config.parts.moe_z.weight=1e-2

metrics.jsonl has its mean in each layer as router/own/z, and its weighted sum as loss/router_z.
"""

import dataclasses

import jax
import jax.numpy as jnp

from deepseek_jax.checking import at_least
from deepseek_jax.models.moe.router import TopKRouter
from deepseek_jax.models.tree import used
from deepseek_jax.parts import add_router


@dataclasses.dataclass(frozen=True)
class ZLoss:
    weight: float = 1e-3

    def __post_init__(self):
        at_least("parts.moe_z", self, 0, "weight")


class ZRouter(TopKRouter):
    def __call__(self, x_TD, tokens_T):
        logits_TE = jnp.matmul(x_TD.astype(jnp.float32), used(self.kernel, jnp.float32), precision="highest")
        z_T = jnp.square(jax.nn.logsumexp(logits_TE, axis=-1))
        return dataclasses.replace(super().__call__(x_TD, tokens_T), own={"z": z_T})


def change_program(program):
    """Adds the term to the loss of every experiment that names this module."""
    weight = program.parts.moe_z.weight

    def loss(*given):
        value, aux = program.loss(*given)
        z = weight * sum(means_L.sum() for means_L in aux.get("router/own/z", {}).values())
        return value + z, aux | {"loss/router_z": z}

    return dataclasses.replace(program, loss=loss)


add_router("moe_z", ZRouter, settings=ZLoss)
