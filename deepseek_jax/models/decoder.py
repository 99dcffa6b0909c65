"""The decoder: embedding, stacks of identical layers run by a scan, final norm, head, multi-token prediction (MTP).

B batch  S sequence  T keys  D model  V vocabulary
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from deepseek_jax.models import rope
from deepseek_jax.models.block import Block
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.context import Context
from deepseek_jax.models.layers import RMSNorm
from deepseek_jax.models.lazy import materialised, of_layer
from deepseek_jax.models.mhc import StreamHead
from deepseek_jax.models.moe.balance import RouterReport
from deepseek_jax.models.mtp import make_mtp
from deepseek_jax.models.remat import POLICIES
from deepseek_jax.models.schedule import groups, layer_kinds, pipelined
from deepseek_jax.models.tree import Parts, in_order, new_rngs, split, stack, weight
from deepseek_jax.parallel import pipeline
from deepseek_jax.parallel.vocabulary import lookup


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Output:
    """Normed final states: `hidden` predicts the next token, `mtp[k]` the token k + 2 positions ahead.

    `routers` holds a report for each stack of MoE layers and each MTP module that has one, by the path of its
    parameters ("layers/1-3", "mtp/0/block"); in a stack's, the first dimension of every array is the layer.
    `attentions` likewise holds what every attention tells, by name: sums over tokens.
    """

    hidden: Float[Array, "B S D"]
    mtp: tuple[Float[Array, "B S D"], ...]
    routers: dict[str, RouterReport]
    attentions: dict[str, dict[str, Float[Array, "..."]]]


class Decoder(nnx.Module):
    """A DeepSeek decoder.

    `dtype`: of the activations.  `remat`: what the backward pass recomputes, "none", "dots" or "full"; see remat.py.
    `capacity_factor`: see Context.  `pipeline_microbatches`, `pipeline_rounds`: see parallel/pipeline.py.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        rngs: nnx.Rngs,
        dtype: str = "float32",
        remat: str = "none",
        capacity_factor: float = 0.0,
        pipeline_microbatches: int = 0,
        pipeline_rounds: int = 1,
    ):
        self.config, self.dtype, self.remat, self.capacity_factor = config, dtype, remat, capacity_factor
        self.pipeline_microbatches, self.pipeline_rounds = pipeline_microbatches, pipeline_rounds
        D, V, scale = config.hidden_size, config.vocab_size, config.initializer_range
        self.embedding = weight(rngs.params(), (V, D), ("vocab", "embed"), scale)
        self.layers = nnx.Dict()
        for stacks in groups(config):
            axis = "pipelined_layers" if stacks == pipelined(config) else "layers"
            for each in stacks:

                def make(key, kind=each.kind):
                    return Block(config, kind, rngs=new_rngs(key))

                self.layers[each.name] = stack(make, rngs.params(), len(each.layers), axis)
        if config.hc_mult:
            self.stream_head = StreamHead(config, rngs=rngs)
        self.norm = RMSNorm(D, config.rms_norm_eps)
        if not config.tie_word_embeddings:
            self.head = weight(rngs.params(), (D, V), ("embed", "vocab"), scale)
        self.mtp = nnx.Dict(
            {
                str(depth): make_mtp(config, kind, rngs=rngs)
                for depth, kind in enumerate(layer_kinds(config)[config.num_hidden_layers :])
            }
        )

    def __call__(
        self,
        tokens_BS: Int[Array, "B S"],
        positions_BS: Int[Array, "B S"],
        segment_ids_BS: Int[Array, "B S"],
        index_warmup: Bool[Array, ""] | None = None,
        key: Key[Array, ""] | None = None,
    ) -> Output:
        """For training and scoring.  Packed documents, numbered by `segment_ids_BS` (0: padding), never see each other.

        `index_warmup`: see Context; `key`: the random key that the context's `keys_BS` are split from.
        """
        context = self.context(tokens_BS, positions_BS, segment_ids_BS)
        keys_BS = None if key is None else jax.random.split(key, tokens_BS.shape)
        context = dataclasses.replace(context, index_warmup=index_warmup, keys_BS=keys_BS)
        x, reports = self.embed_streams(tokens_BS), {}
        for stacks in groups(self.config):
            names = [each.name for each in stacks]
            with jax.named_scope("layers_" + "_".join(names)):
                run = self._pipeline if stacks == pipelined(self.config) else self._scan
                x, found = run([self.layers[name] for name in names], x, context.for_layer(stacks[0].layers.start))
            reports |= zip((f"layers/{name}" for name in names), found)
        hidden_BSD = self.norm(self.merge_streams(x))
        mtp, mtp_reports = self._predict_further(x if self.config.hc_mult else hidden_BSD, context)
        reports |= mtp_reports
        routers = {path: report.router for path, report in reports.items() if report.router is not None}
        attentions = {path: report.attention for path, report in reports.items()}
        return Output(hidden_BSD, mtp, routers, attentions)

    def logits(self, hidden_BSD: Float[Array, "B S D"]) -> Float[Array, "B S V"]:
        """float32 logits; training computes them in chunks instead (tasks/cross_entropy.py)."""
        return jnp.einsum("BSD,DV->BSV", hidden_BSD, self.head_weight(), preferred_element_type=jnp.float32)

    def head_weight(self) -> Float[Array, "D V"]:
        head_DV = self.embedding[...].T if self.config.tie_word_embeddings else self.head[...]
        return head_DV.astype(self.dtype)

    def embed(self, tokens_BS: Int[Array, "B S"]) -> Float[Array, "B S D"]:
        return self.embed_beside(None, tokens_BS)[1]

    def embed_beside(self, x: Array | None, tokens_BS: Int[Array, "B S"]) -> tuple[Array | None, Float[Array, "B S D"]]:
        """Returns (x unchanged, the embedding of the tokens that x will be combined with).

        Passing x through orders its gradient's collectives: see `lookup`.
        """
        with jax.named_scope("embed"):
            embedded_BSD, x = lookup(self.embedding[...], tokens_BS, self.dtype, x)
            return x, embedded_BSD

    def embed_streams(self, tokens_BS: Int[Array, "B S"]) -> Array:
        """The first layer's input: the embedding [B S D], or with hyper-connections n copies of it [B S nD]."""
        x_BSD, n = self.embed(tokens_BS), self.config.hc_mult
        return jnp.concatenate([x_BSD] * n, axis=-1) if n else x_BSD

    def merge_streams(self, x) -> Float[Array, "B S D"]:
        """The final norm's input, from a layer's output or a state of a Trace: streams are merged into one state."""
        return self.stream_head(x) if self.config.hc_mult else x

    def context(
        self, tokens_BS: Int[Array, "B S"], positions_BS: Int[Array, "B S"], segment_ids_BS: Int[Array, "B S"]
    ) -> Context:
        ropes = {
            kind: rope.tables(self.config, kind, positions_BS) for kind in sorted(set(self.config.attention_kinds))
        }
        counted_BS = segment_ids_BS > 0
        return Context(
            tokens_BS, positions_BS, segment_ids_BS, counted_BS, rope=ropes, capacity_factor=self.capacity_factor
        )

    def _pipeline(self, stacks, x, context):
        """Like `_scan`, with the layers distributed over the mesh's pipeline stages."""
        if pipeline.stages() == 1:
            return self._scan(stacks, x, context)

        def layer(stacks, x, context, index, number):
            return self._layer(stacks, x, context.for_layer(number), index)

        # Each stage fetches its layers once per step, so lazy weights must be arrays by then.
        return pipeline.run(layer, materialised(stacks), x, context, self.pipeline_microbatches, self.pipeline_rounds)

    def _scan(self, stacks, x, context):
        """Runs the layers of `stacks`, alternating between stacks; returns (the next x, a report per stack)."""
        depth = jax.tree.leaves(stacks)[0].shape[0]
        numbers = None if context.keys_BS is None else jnp.arange(depth)

        def layer(x, blocks_and_number):
            blocks, number = blocks_and_number
            return self._layer(blocks, x, context.for_layer(number))

        if depth == 1:  # as in small V4 models: a scan of one layer takes longer to trace, differentiate and compile
            x, reports = layer(x, jax.tree.map(lambda leaf: jnp.squeeze(leaf, 0), (stacks, numbers)))
            return x, jax.tree.map(lambda leaf: leaf[None], reports)
        return jax.lax.scan(layer, x, (stacks, numbers), unroll=pipeline.unrolls(depth))

    def _layer(self, blocks, x, context, index=None):
        """Runs one layer of each stack in turn; returns (the next x, their reports).

        Without `index`, `blocks` are single layers; with it they are whole stacks, from each of which that layer is
        sliced.
        """

        def run(block, x, context):
            if index is not None:
                block = jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False), block)
            return of_layer(block)(x, context)

        # Residuals saved for the backward pass must not include the weights sliced from a stack: those are copies.
        remat = "dots" if index is not None and self.remat == "none" else self.remat
        run = run if remat == "none" else jax.checkpoint(run, policy=POLICIES[remat])
        reports = []
        for number, block in enumerate(blocks):
            x, report = run(block, x, context.for_layer(number))
            reports.append(report)
        return x, reports

    def _predict_further(self, x, context):
        """Runs the MTP modules in a chain from `x`: the normed final state, or the last layer's streams; see mtp.py."""
        states, reports = [], {}
        for depth, (name, module) in enumerate(in_order(self.mtp), start=1):
            ahead = dataclasses.replace(
                context.for_layer(self.config.num_hidden_layers + depth),
                tokens_BS=shift(context.tokens_BS, depth),
                counted_BS=same_document(context.segment_ids_BS, depth),
            )
            x, hidden_BSD, reports[f"mtp/{name}/block"] = module(*self.embed_beside(x, ahead.tokens_BS), ahead)
            states.append(hidden_BSD)
        return tuple(states), reports


def shift(x_BS: Int[Array, "B S"], ahead: int) -> Int[Array, "B S"]:
    """x shifted left: position t holds x[:, t + ahead], or zero past the end."""
    return jnp.pad(x_BS[:, ahead:], ((0, 0), (0, min(ahead, x_BS.shape[1]))))


def same_document(segment_ids_BS: Int[Array, "B S"], ahead: int) -> Bool[Array, "B S"]:
    """Whether the token `ahead` positions later belongs to the same document; False at padding."""
    return (segment_ids_BS > 0) & (shift(segment_ids_BS, ahead) == segment_ids_BS)


def initialise(config: ModelConfig, key: Array, **options) -> Parts:
    """(structure, parameters, buffers) of a new Decoder(config, **options); parameters are float32 for any `dtype`."""
    return split(Decoder(config, rngs=new_rngs(key), **options))
