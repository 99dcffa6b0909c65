"""Which tensors of a released checkpoint make up which of our arrays: one table, read in both directions.

Theirs: [out, in] matrices, one tensor an expert and a layer.  Ours: [in, out] with the heads apart, experts and equal
layers stacked.

D model  Q query rank  C key-value rank  H heads  E experts  V vocabulary or value dims  o out  i in
d a head's query or key width  e a head's key and value width
"""

import dataclasses
from collections.abc import Iterable

import numpy as np
from einops import rearrange

from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.schedule import layers_of


@dataclasses.dataclass(frozen=True)
class Rule:
    """`layout` is an einops pattern from their tensor to our array.

    Where `theirs` has "{expert}", one tensor for each routed expert, stacked along a first dimension.
    """

    ours: str
    theirs: str
    layout: str

    def names(self, config: ModelConfig) -> list[str]:
        """Their tensors in the order in which `to_ours` takes them."""
        count = config.n_routed_experts if self._by_expert else 1
        return [self.theirs.format(expert=expert) for expert in range(count)]

    def to_ours(self, tensors: list[np.ndarray], config: ModelConfig) -> np.ndarray:
        return rearrange(np.stack(tensors) if self._by_expert else tensors[0], self.layout, **self._sizes(config))

    def to_theirs(self, array: np.ndarray, config: ModelConfig) -> list[np.ndarray]:
        theirs, ours = self.layout.split(" -> ")
        tensor = rearrange(array, f"{ours} -> {theirs}", **self._sizes(config))
        return list(tensor) if self._by_expert else [tensor]

    @property
    def _by_expert(self):
        return "{expert}" in self.theirs

    def _sizes(self, config):
        return {"H": config.num_attention_heads} if "H" in self.layout else {}


def _vector(ours: str, theirs: str) -> Rule:
    return Rule(ours, theirs, "D -> D")


def _linear(ours: str, theirs: str) -> Rule:
    return Rule(ours, f"{theirs}.weight", "o i -> i o")


def _swiglu(ours: str, theirs: str) -> list[Rule]:
    return [_linear(f"{ours}.{part}", f"{theirs}.{part}_proj") for part in ("gate", "up", "down")]


def _experts(ours: str, theirs: str) -> list[Rule]:
    """As `_swiglu`, for every routed expert."""
    return [Rule(rule.ours, rule.theirs, "E o i -> E i o") for rule in _swiglu(ours, theirs + ".{expert}")]


MODEL_RULES = (
    Rule("embedding", "model.embed_tokens.weight", "V D -> V D"),
    _vector("norm.scale", "model.norm.weight"),
    _linear("head", "lm_head"),
)

LAYER_RULES = (
    _vector("attention_norm.scale", "input_layernorm.weight"),
    _linear("attention.q_down", "self_attn.q_a_proj"),
    _vector("attention.q_down_bias", "self_attn.q_a_proj.bias"),
    _vector("attention.q_norm.scale", "self_attn.q_a_layernorm.weight"),
    Rule("attention.q_up", "self_attn.q_b_proj.weight", "(H d) Q -> Q H d"),
    _linear("attention.kv_down", "self_attn.kv_a_proj_with_mqa"),
    _vector("attention.kv_down_bias", "self_attn.kv_a_proj_with_mqa.bias"),
    _vector("attention.kv_norm.scale", "self_attn.kv_a_layernorm.weight"),
    Rule("attention.kv_up", "self_attn.kv_b_proj.weight", "(H e) C -> C H e"),
    Rule("attention.out", "self_attn.o_proj.weight", "D (H V) -> H V D"),
    _vector("attention.out_bias", "self_attn.o_proj.bias"),
    _vector("feed_forward_norm.scale", "post_attention_layernorm.weight"),
    *_swiglu("feed_forward", "mlp"),
    _linear("feed_forward.router.kernel", "mlp.gate"),
    _vector("feed_forward.router.bias", "mlp.gate.e_score_correction_bias"),
    *_experts("feed_forward.experts", "mlp.experts"),
    *_swiglu("feed_forward.shared", "mlp.shared_experts"),
)

DIRECT_QUERY = Rule("attention.q_up", "self_attn.q_proj.weight", "(H d) D -> D H d")  # where q_lora_rank is 0

MTP_RULES = (
    _vector("embedding_norm.scale", "enorm.weight"),
    _vector("hidden_norm.scale", "hnorm.weight"),
    _linear("project", "eh_proj"),
    _vector("norm.scale", "shared_head.norm.weight"),
)

# Each multi-token prediction module ships copies of these: written, not read.
MTP_COPIES = {"embed_tokens.weight": "model.embed_tokens.weight", "shared_head.head.weight": "lm_head.weight"}


@dataclasses.dataclass(frozen=True)
class Place:
    """Where one of our arrays lies in a checkpoint: a rule, under a prefix for each layer of the stack."""

    rule: Rule
    prefixes: tuple[str, ...]
    stacked: bool  # whether our array has the leading layer dimension

    def names(self, config: ModelConfig) -> list[list[str]]:
        """Their names, layer by layer."""
        return [[prefix + name for name in self.rule.names(config)] for prefix in self.prefixes]

    def to_ours(self, layers: Iterable[list[np.ndarray]], config: ModelConfig) -> np.ndarray:
        arrays = [self.rule.to_ours(tensors, config) for tensors in layers]
        return np.stack(arrays) if self.stacked else arrays[0]

    def to_theirs(self, array: np.ndarray, config: ModelConfig) -> dict[str, np.ndarray]:
        layers = array if self.stacked else [array]
        return {
            name: tensor
            for names, layer in zip(self.names(config), layers, strict=True)
            for name, tensor in zip(names, self.rule.to_theirs(layer, config), strict=True)
        }


def place(path: tuple[str, ...], config: ModelConfig) -> Place:
    """The place of our array at `path` of the parameters or buffers, as models/decoder.py names them."""
    if path[0] == "layers":  # layers / first-last / ...
        prefixes = tuple(map(layer_prefix, layers_of(path[1])))
        return Place(_layer_rule(path[2:], config), prefixes, stacked=True)
    if path[0] == "mtp":  # mtp / depth / ...; released checkpoints number the modules on after the last layer
        prefix = layer_prefix(config.num_hidden_layers + int(path[1]))
        rule = _layer_rule(path[3:], config) if path[2] == "block" else _find(MTP_RULES, path[2:])
        return Place(rule, (prefix,), stacked=False)
    return Place(_find(MODEL_RULES, path), ("",), stacked=False)


def layer_prefix(number: int) -> str:
    return f"model.layers.{number}."


def _layer_rule(path, config):
    rule = _find(LAYER_RULES, path)
    return DIRECT_QUERY if rule.ours == DIRECT_QUERY.ours and not config.q_lora_rank else rule


def _find(rules, path):
    return next(rule for rule in rules if rule.ours == ".".join(path))
