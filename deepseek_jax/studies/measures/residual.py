"""How much the residual path of a model with hyper-connections amplifies its streams over all layers.

B batch  S sequence  n streams
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from deepseek_jax.models import schedule
from deepseek_jax.models.block import Block
from deepseek_jax.models.decoder import Decoder
from deepseek_jax.models.tree import merge
from deepseek_jax.studies.measures import text
from deepseek_jax.train.checkpoints.restore import Trained


def composite_gain(trained: Trained) -> dict[str, float]:
    """Of the product of all layers' mixing matrices: its largest absolute column sum, by which streams can grow, and
    its largest absolute row sum, by which gradients can (mHC, section 3.1); means over held-out tokens.

    1 for a plain residual connection, by definition.
    """
    if not trained.experiment.model.hc_mult:
        return {"composite_gain": 1.0, "composite_gain_backward": 1.0}
    (batch,) = text.batches(trained, 1, rows=8)
    forward, backward = _gains(trained.graphdef, trained.params, trained.buffers, batch)
    return {"composite_gain": float(forward), "composite_gain_backward": float(backward)}


composite_gain.gives = ("composite_gain", "composite_gain_backward")


@functools.partial(jax.jit, static_argnums=0)
def _gains(graphdef, params, buffers, batch):
    product_BSnn = composite(merge(graphdef, params, buffers), batch)
    real_BS = batch["segment_ids"] > 0
    sums = (jnp.abs(product_BSnn).sum(axis=axis).max(axis=-1) for axis in (-2, -1))
    return tuple((found * real_BS).sum() / real_BS.sum() for found in sums)


def composite(model: Decoder, batch: dict[str, np.ndarray]) -> jax.Array:
    """The product [B S n n] of all sublayers' stream-mixing matrices, first to last."""
    context = model.context(batch["tokens"], batch["positions"], batch["segment_ids"])
    x = model.embed_streams(batch["tokens"])
    product = jnp.eye(model.config.hc_mult)
    for block in _blocks(model):
        for residual, sublayer in _sublayers(block, context):
            product = product @ residual.maps(x)[2]
            x, _ = residual(x, sublayer)
    return product


def _blocks(model: Decoder) -> list[Block]:
    blocks = []
    for stacks in schedule.groups(model.config):
        for index in range(len(stacks[0].layers)):
            blocks += [jax.tree.map(lambda leaf: leaf[index], model.layers[stack.name]) for stack in stacks]  # noqa: B023
    return blocks


def _sublayers(block: Block, context):
    yield block.attention_residual, lambda h: block.attention(block.attention_norm(h), context)
    yield block.feed_forward_residual, lambda h: block.feed_forward(block.feed_forward_norm(h), context)
