"""The decoder: embedding, runs of equal layers stacked and scanned, final norm, head, multi-token prediction.

B batch  S sequence  T keys  D model  V vocabulary
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from deepseek_jax.models import rope
from deepseek_jax.models.attention.core import causal_mask
from deepseek_jax.models.attention.mla import Context
from deepseek_jax.models.block import Block, layer_kinds
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.layers import RMSNorm
from deepseek_jax.models.moe.balance import RouterReport
from deepseek_jax.models.mtp import MultiTokenPrediction
from deepseek_jax.models.tree import split, stack, weight

REMAT_POLICIES = {"dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable, "full": None}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Output:
    """States after the norms: `hidden` predicts the next token, `mtp[k]` the token k + 2 places ahead.

    `routers` holds a report for each stack with MoE layers, nested as the buffers are; its arrays lead with the layer.
    """

    hidden: Float[Array, "B S D"]
    mtp: tuple[Float[Array, "B S D"], ...]
    routers: dict[str, dict[str, RouterReport]]


class Decoder(nnx.Module):
    """A DeepSeek decoder.  `dtype` is the activations' type; `remat` what the backward pass computes again."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs, dtype: str = "float32", remat: str = "none"):
        self.config, self.dtype, self.remat = config, dtype, remat
        D, V, scale = config.hidden_size, config.vocab_size, config.initializer_range
        self.embedding = weight(rngs.params(), (V, D), ("vocab", "embed"), scale)
        self.layers = nnx.Dict()
        start = 0
        for kind, run in itertools.groupby(layer_kinds(config)):
            count = len(list(run))
            make = lambda key, kind=kind: Block(config, kind, rngs=nnx.Rngs(params=key))  # noqa: E731
            self.layers[f"{start}-{start + count - 1}"] = stack(make, rngs.params(), count)
            start += count
        self.norm = RMSNorm(D, config.rms_norm_eps)
        if not config.tie_word_embeddings:
            self.head = weight(rngs.params(), (D, V), ("embed", "vocab"), scale)
        self.mtp = nnx.Dict(
            {str(k): MultiTokenPrediction(config, rngs=rngs) for k in range(config.num_nextn_predict_layers)}
        )

    def __call__(
        self, tokens_BS: Int[Array, "B S"], positions_BS: Int[Array, "B S"], segment_ids_BS: Int[Array, "B S"]
    ) -> Output:
        """Training and scoring: packed documents, numbered by `segment_ids_BS` (0 is padding), never see each other."""
        context = self.context(positions_BS, causal_mask(segment_ids_BS))
        x_BSD, routers = self.embed(tokens_BS), {}
        counted_BS = segment_ids_BS > 0
        for name, run in self.layers.items():
            with jax.named_scope(f"layers_{name}"):
                x_BSD, report = self._scan(lambda block, x: block(x, context, counted_BS), run, x_BSD)
            if report is not None:
                routers[name] = report
        hidden_BSD = self.norm(x_BSD)
        mtp, mtp_routers = self._predict_further(hidden_BSD, tokens_BS, segment_ids_BS, context)
        reports = {"layers": routers, "mtp": mtp_routers}
        return Output(hidden_BSD, mtp, {name: found for name, found in reports.items() if found})

    def logits(self, hidden_BSD: Float[Array, "B S D"]) -> Float[Array, "B S V"]:
        """float32 scores of the vocabulary; training works in chunks instead (tasks/cross_entropy.py)."""
        return jnp.einsum("BSD,DV->BSV", hidden_BSD, self.head_weight(), preferred_element_type=jnp.float32)

    def head_weight(self) -> Float[Array, "D V"]:
        head_DV = self.embedding[...].T if self.config.tie_word_embeddings else self.head[...]
        return head_DV.astype(self.dtype)

    def embed(self, tokens_BS: Int[Array, "B S"]) -> Float[Array, "B S D"]:
        with jax.named_scope("embed"):
            return jnp.take(self.embedding[...], tokens_BS, axis=0).astype(self.dtype)

    def context(self, positions_BS: Int[Array, "B S"], mask_BST: Bool[Array, "B S T"]) -> Context:
        return Context(*rope.tables(self.config, positions_BS), mask_BST)

    def _scan(self, layer, run, x_BSD):
        if self.remat != "none":
            layer = jax.checkpoint(layer, policy=REMAT_POLICIES[self.remat])
        return jax.lax.scan(lambda x, block: layer(block, x), x_BSD, run)

    def _predict_further(self, hidden_BSD, tokens_BS, segment_ids_BS, context):
        states, routers = [], {}
        for depth, (name, module) in enumerate(self.mtp.items(), start=1):
            counted_BS = same_document(segment_ids_BS, depth)
            embedded_BSD = self.embed(shift(tokens_BS, depth))
            hidden_BSD, report = module(hidden_BSD, embedded_BSD, context, counted_BS)
            states.append(hidden_BSD)
            if report is not None:
                routers[name] = {"block": report}
        return tuple(states), routers


def shift(x_BS: Int[Array, "B S"], ahead: int) -> Int[Array, "B S"]:
    """x[:, t + ahead] at t; zeros past the end."""
    return jnp.pad(x_BS[:, ahead:], ((0, 0), (0, ahead)))


def same_document(segment_ids_BS: Int[Array, "B S"], ahead: int) -> Bool[Array, "B S"]:
    """Where the token `ahead` places on belongs to the same document, padding being none."""
    return (segment_ids_BS > 0) & (shift(segment_ids_BS, ahead) == segment_ids_BS)


def initialise(
    config: ModelConfig, key: Array, *, dtype: str = "float32", remat: str = "none"
) -> tuple[nnx.GraphDef, dict, dict]:
    """(structure, parameters, buffers) of a new decoder; parameters are float32 whatever the activations' type."""
    return split(Decoder(config, rngs=nnx.Rngs(params=key), dtype=dtype, remat=remat))
