"""Exact parameter counts of a model, and the size of its cache."""

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

# A parameter's group is that of the first of these names that occurs in its path.  Paths without any of them are the
# norms between sublayers; norms inside attention count as attention.
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
    """Parameters by group, and the share of the routed experts that each token uses."""

    groups: Mapping[str, int]
    routed_share: float

    @property
    def total(self) -> int:
        return sum(self.groups.values())

    @property
    def activated(self) -> int:
        """Parameters used in one token's forward pass; the embedding table counts in full."""
        return sum(map(self.of_a_token, self.groups))

    def of_a_token(self, group: str) -> int:
        size = self.groups[group]
        return round(size * self.routed_share) if group == "routed experts" else size


@dataclasses.dataclass(frozen=True)
class Census:
    """Parameter counts of the main model, of its MTP modules (which share its embedding and head), and of buffers."""

    main: Counts
    mtp: Counts
    buffers: int


def census(config: ModelConfig) -> Census:
    """Counts the parameters and buffers of an abstractly initialised model: only shapes are computed."""
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
    """Matrix parameters that each token is multiplied with, MTP modules included; the head once per prediction depth.

    Excludes the embedding, which is only looked up, and scales and biases, which are not matrices.
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
    """Returns (numbers added to the layers' caches per token, numbers that they hold whatever the length).

    Excludes MTP modules and what csa and hca layers keep for a block that is not yet complete.
    """
    layers = _attentions(config)
    return sum(layer.cached for layer in layers), sum(layer.held for layer in layers)


def cache_made(config: ModelConfig, length: int) -> int:
    """Numbers in the caches that generation allocates for one text of `length` tokens, MTP modules excluded.

    More than `cache_size`: includes room for rejected drafts and for the newest tokens' share of incomplete blocks.
    """

    def caches():
        key = jax.random.key(0)
        model = Decoder(config, rngs=nnx.Rngs(params=key))
        return CachedDecoder(model).empty_caches(batch=1, max_length=length)

    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(jax.eval_shape(caches)))


def multi_head_cache(config: ModelConfig) -> int:
    """Numbers cached per token, over all layers, if every head kept its own key and value (multi-head attention)."""
    return sum(layer.apart for layer in _attentions(config))


def _attentions(config):
    return [attention_cost(config, kind) for kind in config.attention_kinds[: config.num_hidden_layers]]
