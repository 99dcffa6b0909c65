"""What a model takes: its parameters, exactly, and the numbers that its cache grows by with every token."""

import dataclasses
import functools
import math
from collections.abc import Mapping

import jax
from flax import nnx

from deepseek_jax.models import tree
from deepseek_jax.models.attention.costs import attention_cost
from deepseek_jax.models.cached import CachedDecoder
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.decoder import Decoder, initialise

# The group of a parameter: that of the first of these names that its path has.  Only the norms between sublayers have
# none of them; those inside of attention count as attention.
GROUPS = {
    "experts": "routed experts",
    "shared": "shared experts",
    "router": "router",
    "indexer": "indexer",
    "compressor": "compressor",
    "attention_residual": "hyper-connections",
    "feed_forward_residual": "hyper-connections",
    "stream_head": "hyper-connections",
    "attention": "attention",
    "feed_forward": "dense feed-forward",
    "project": "MTP projection",
    "project_embedding": "MTP projection",
    "project_hidden": "MTP projection",
    "embedding": "embedding",
    "head": "head",
}
NORMS = "norms"


@dataclasses.dataclass(frozen=True)
class Counts:
    """Parameters by group, and the share of the routed experts that a token goes to."""

    groups: Mapping[str, int]
    routed_share: float

    @property
    def total(self) -> int:
        return sum(self.groups.values())

    @property
    def activated(self) -> int:
        """Parameters that have a part in one token's forward pass, the embedding's table counted whole."""
        return sum(map(self.of_a_token, self.groups))

    def of_a_token(self, group: str) -> int:
        size = self.groups[group]
        return round(size * self.routed_share) if group == "routed experts" else size


@dataclasses.dataclass(frozen=True)
class Census:
    """Of the main model, of its MTP modules without embedding and head, which they share, and what is no parameter."""

    main: Counts
    mtp: Counts
    buffers: int


def census(config: ModelConfig) -> Census:
    """Counts the arrays of the model itself, of which only the shapes are made."""
    _, params, buffers = jax.eval_shape(lambda: initialise(config, jax.random.key(0)))
    main, mtp = {}, {}
    for names, size in _sizes(params):
        groups = mtp if names[0] == "mtp" else main
        group = group_of(names)
        groups[group] = groups.get(group, 0) + size
    share = config.num_experts_per_tok / max(config.n_routed_experts, 1)
    return Census(Counts(main, share), Counts(mtp, share), sum(size for _, size in _sizes(buffers)))


def group_of(names: tuple[str, ...]) -> str:
    """The group of the parameter at this path."""
    return next((group for name, group in GROUPS.items() if name in names), NORMS)


@functools.cache
def multiplied(config: ModelConfig) -> int:
    """Parameters that each token is multiplied with, MTP modules included; the head once for each depth of prediction.

    Not the embedding, which is looked up, nor scales and biases, which are no matrices.
    """
    _, params, _ = jax.eval_shape(lambda: initialise(config, jax.random.key(0)))
    times = {"embedding": 0, "head": 1 + config.num_nextn_predict_layers}
    if config.tie_word_embeddings:
        times["embedding"] = times["head"]
    routed_share = config.num_experts_per_tok / max(config.n_routed_experts, 1)
    matrices = [(group_of(names), size) for names, size in _sizes(params) if not tree.is_vector(names[-1])]
    routed = sum(size for group, size in matrices if group == "routed experts")
    others = sum(size * times.get(group, 1) for group, size in matrices if group != "routed experts")
    return others + round(routed * routed_share)


def _sizes(tree):
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield tuple(key.key for key in path), math.prod(leaf.shape)


def cache_size(config: ModelConfig) -> tuple[float, int]:
    """(numbers that the layers' caches grow by with a token, numbers they hold from the start).

    Not counted are MTP modules, and what compressing layers keep of an unfinished block.
    """
    layers = _attentions(config)
    return sum(layer.cached for layer in layers), sum(layer.held for layer in layers)


def cache_made(config: ModelConfig, length: int) -> int:
    """Numbers in the caches that generation makes for one text of `length` tokens, MTP modules not counted.

    Beside `cache_size`, room for drafts that are rejected and for what the newest tokens bring to unfinished blocks.
    """

    def caches():
        key = jax.random.key(0)
        model = Decoder(config, rngs=nnx.Rngs(params=key))
        return CachedDecoder(model).empty_caches(batch=1, max_length=length)

    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(jax.eval_shape(caches)))


def multi_head_cache(config: ModelConfig) -> int:
    """Numbers a token that the same heads would leave behind if each kept a key and a value of its own."""
    return sum(layer.apart for layer in _attentions(config))


def _attentions(config):
    return [attention_cost(config, kind) for kind in config.attention_kinds[: config.num_hidden_layers]]
