"""Which tensor of a released checkpoint corresponds to which of our arrays: one table, used in both directions.

Theirs: [out, in] matrices, one tensor per expert and layer.  Ours: [in, out], heads in a dimension of their own,
experts and equal layers stacked.  V1 to V3.2 share one set of names; for V4 Hugging Face continues it, but DeepSeek
uses new names, so a rule has both.

D model  Q query rank  C key-value rank  K experts a token  V vocabulary or value dims  o out  i in
d, e a head's width  m tokens in a block  c compressor's width
H heads  G key-value heads  h indexer's heads  g groups of the output (the letters of SIZES)
"""

import dataclasses
import math
import re

import numpy as np
from einops import rearrange

from deepseek_jax.models.config import ModelConfig

SIZES = {"H": "num_attention_heads", "G": "num_key_value_heads", "h": "index_n_heads", "g": "o_groups"}

MATRIX, SAME_MATRIX, VECTOR = "o i -> i o", "o i -> o i", "D -> D"
AS_OURS = "... -> ..."  # unchanged, whatever its dimensions


@dataclasses.dataclass(frozen=True)
class Rule:
    """`layout` is an einops pattern from their tensor to our array of one layer, which has no merged dimensions.

    A name with "{expert}" stands for one tensor per routed expert; our array then has a leading dimension for experts.
    `deepseek` is the name in V4's own files, None for tensors that V4 lacks.  `float32`: stays in float32 whatever
    dtype is asked for, as in the released files, whose other tensors are bfloat16.
    """

    ours: str
    layout: str
    hugging_face: str
    deepseek: str | None = None
    float32: bool = False

    @property
    def by_expert(self) -> bool:
        return "{expert}" in self.hugging_face

    def name(self, *, deepseek: bool) -> str:
        return self.deepseek if deepseek and self.deepseek else self.hugging_face

    def dtype(self, asked: str | None) -> str | None:
        """The dtype of our array in a model of dtype `asked`; None: as stored."""
        return "float32" if asked and self.float32 else asked

    def to_ours(self, tensor: np.ndarray, config: ModelConfig) -> np.ndarray:
        return rearrange(tensor, self.layout, **self._sizes(config))

    def to_theirs(self, array: np.ndarray, config: ModelConfig) -> np.ndarray:
        theirs, ours = self.layout.split(" -> ")
        return rearrange(array, f"{ours} -> {theirs}", **self._sizes(config))

    def shape_of_theirs(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of their tensor, given that of our array (of one layer and expert)."""
        if self.layout == AS_OURS:
            return shape
        theirs, ours = self.layout.split(" -> ")
        size = dict(zip(ours.split(), shape, strict=True))
        return tuple(
            math.prod(size[letter] for letter in re.findall(r"\w+", dim)) for dim in re.findall(r"\(.*?\)|\w+", theirs)
        )

    def _sizes(self, config):
        letters = set(re.findall(r"\w+", self.layout)) & SIZES.keys()
        return {letter: getattr(config, SIZES[letter]) for letter in letters}


def of_your_own(ours: str) -> Rule:
    """The rule for an array that no released model has: stored unchanged under its own path."""
    return Rule(ours, AS_OURS, ours)


def _swiglu(ours: str, hugging_face: str, deepseek: str) -> tuple[Rule, ...]:
    parts = (("gate", "w1"), ("up", "w3"), ("down", "w2"))
    return tuple(
        Rule(f"{ours}.{part}", MATRIX, f"{hugging_face}.{part}_proj.weight", f"{deepseek}.{number}.weight")
        for part, number in parts
    )


def _swiglu_biases(ours: str, hugging_face: str) -> tuple[Rule, ...]:
    return tuple(
        Rule(f"{ours}.{part}_bias", VECTOR, f"{hugging_face}.{part}_proj.bias") for part in ("gate", "up", "down")
    )


def _compressor(ours: str, hugging_face: str, deepseek: str) -> tuple[Rule, ...]:
    return (
        Rule(f"{ours}.kv", MATRIX, f"{hugging_face}.kv_proj.weight", f"{deepseek}.wkv.weight"),
        Rule(f"{ours}.gate", MATRIX, f"{hugging_face}.gate_proj.weight", f"{deepseek}.wgate.weight"),
        Rule(f"{ours}.position_bias", "m c -> m c", f"{hugging_face}.position_bias", f"{deepseek}.ape", float32=True),
        Rule(f"{ours}.norm.scale", VECTOR, f"{hugging_face}.kv_norm.weight", f"{deepseek}.norm.weight"),
    )


def _streams(ours: str, hugging_face: str, deepseek: str) -> tuple[Rule, ...]:
    return (
        Rule(f"{ours}.kernel", MATRIX, f"{hugging_face}fn", f"{deepseek}_fn", float32=True),
        Rule(f"{ours}.bias", VECTOR, f"{hugging_face}base", f"{deepseek}_base", float32=True),
        Rule(f"{ours}.scale", VECTOR, f"{hugging_face}scale", f"{deepseek}_scale", float32=True),
    )


MODEL = (
    Rule("embedding", SAME_MATRIX, "model.embed_tokens.weight", "embed.weight"),
    Rule("norm.scale", VECTOR, "model.norm.weight", "norm.weight"),
    Rule("head", MATRIX, "lm_head.weight", "head.weight"),
    *_streams("stream_head", "model.hc_head.hc_", "hc_head"),
)

BLOCK = (
    *_streams("attention_residual", "attn_hc.", "hc_attn"),
    Rule("attention_norm.scale", VECTOR, "input_layernorm.weight", "attn_norm.weight"),
    *_streams("feed_forward_residual", "ffn_hc.", "hc_ffn"),
    Rule("feed_forward_norm.scale", VECTOR, "post_attention_layernorm.weight", "ffn_norm.weight"),
    *_swiglu("feed_forward", "mlp", "ffn"),
    *_swiglu_biases("feed_forward", "mlp"),
    Rule("feed_forward.router.kernel", MATRIX, "mlp.gate.weight", "ffn.gate.weight"),
    Rule("feed_forward.router.bias", VECTOR, "mlp.gate.e_score_correction_bias", "ffn.gate.bias"),
    Rule("feed_forward.router.table", "V K -> V K", "mlp.gate.tid2eid", "ffn.gate.tid2eid"),
    *_swiglu("feed_forward.experts", "mlp.experts.{expert}", "ffn.experts.{expert}"),
    *_swiglu("feed_forward.shared", "mlp.shared_experts", "ffn.shared_experts"),
    *_swiglu_biases("feed_forward.shared", "mlp.shared_experts"),
)

GROUPED = (
    Rule("attention.q", "(H d) D -> D H d", "self_attn.q_proj.weight"),
    Rule("attention.k", "(G d) D -> D G d", "self_attn.k_proj.weight"),
    Rule("attention.v", "(G d) D -> D G d", "self_attn.v_proj.weight"),
    Rule("attention.out", "D (H d) -> H d D", "self_attn.o_proj.weight"),
    Rule("attention.q_bias", "(H d) -> H d", "self_attn.q_proj.bias"),
    Rule("attention.k_bias", "(G d) -> G d", "self_attn.k_proj.bias"),
    Rule("attention.v_bias", "(G d) -> G d", "self_attn.v_proj.bias"),
    Rule("attention.out_bias", VECTOR, "self_attn.o_proj.bias"),
)

LATENT = (
    Rule("attention.q_down", MATRIX, "self_attn.q_a_proj.weight"),
    Rule("attention.q_down_bias", VECTOR, "self_attn.q_a_proj.bias"),
    Rule("attention.q_norm.scale", VECTOR, "self_attn.q_a_layernorm.weight"),
    Rule("attention.q_up", "(H d) Q -> Q H d", "self_attn.q_b_proj.weight"),
    Rule("attention.kv_down", MATRIX, "self_attn.kv_a_proj_with_mqa.weight"),
    Rule("attention.kv_down_bias", VECTOR, "self_attn.kv_a_proj_with_mqa.bias"),
    Rule("attention.kv_norm.scale", VECTOR, "self_attn.kv_a_layernorm.weight"),
    Rule("attention.kv_up", "(H e) C -> C H e", "self_attn.kv_b_proj.weight"),
    Rule("attention.out", "D (H V) -> H V D", "self_attn.o_proj.weight"),
    Rule("attention.out_bias", VECTOR, "self_attn.o_proj.bias"),
)

DIRECT_QUERY = Rule("attention.q_up", "(H d) D -> D H d", "self_attn.q_proj.weight")  # where q_lora_rank is 0

INDEXER = (
    Rule("attention.indexer.q_up", "(h i) Q -> Q h i", "self_attn.indexer.wq_b.weight"),
    Rule("attention.indexer.k", MATRIX, "self_attn.indexer.wk.weight"),
    Rule("attention.indexer.k_norm.scale", VECTOR, "self_attn.indexer.k_norm.weight"),
    Rule("attention.indexer.k_norm.bias", VECTOR, "self_attn.indexer.k_norm.bias"),
    Rule("attention.indexer.weights", MATRIX, "self_attn.indexer.weights_proj.weight"),
)

_INDEXER = "self_attn.compressor.indexer"
WINDOWED = (
    Rule("attention.q_down", MATRIX, "self_attn.q_a_proj.weight", "attn.wq_a.weight"),
    Rule("attention.q_norm.scale", VECTOR, "self_attn.q_a_norm.weight", "attn.q_norm.weight"),
    Rule("attention.q_up", "(H d) Q -> Q H d", "self_attn.q_b_proj.weight", "attn.wq_b.weight"),
    Rule("attention.kv", MATRIX, "self_attn.kv_proj.weight", "attn.wkv.weight"),
    Rule("attention.kv_norm.scale", VECTOR, "self_attn.kv_norm.weight", "attn.kv_norm.weight"),
    Rule("attention.sinks", VECTOR, "self_attn.sinks", "attn.attn_sink", float32=True),
    Rule("attention.out_down", "(g o) i -> g i o", "self_attn.o_a_proj.weight", "attn.wo_a.weight"),
    Rule("attention.out_up", MATRIX, "self_attn.o_b_proj.weight", "attn.wo_b.weight"),
    *_compressor("attention.compressor", "self_attn.compressor", "attn.compressor"),
    Rule("attention.indexer.q_up", "(h i) Q -> Q h i", f"{_INDEXER}.q_b_proj.weight", "attn.indexer.wq_b.weight"),
    Rule(
        "attention.indexer.weights",
        MATRIX,
        f"{_INDEXER}.scorer.weights_proj.weight",
        "attn.indexer.weights_proj.weight",
    ),
    *_compressor("attention.indexer.compressor", _INDEXER, "attn.indexer.compressor"),
)

ATTENTION = {
    "gqa": GROUPED,
    "mla": LATENT,
    "dsa": LATENT + INDEXER,
    "window": WINDOWED,
    "csa": WINDOWED,
    "hca": WINDOWED,
}

MTP = (
    Rule("embedding_norm.scale", VECTOR, "enorm.weight", "enorm.weight"),
    Rule("hidden_norm.scale", VECTOR, "hnorm.weight", "hnorm.weight"),
    Rule("project", MATRIX, "eh_proj.weight"),
    Rule("project_embedding", MATRIX, "e_proj.weight", "e_proj.weight"),
    Rule("project_hidden", MATRIX, "h_proj.weight", "h_proj.weight"),
    *_streams("stream_head", "hc_head.hc_", "hc_head"),
    Rule("norm.scale", VECTOR, "shared_head.norm.weight", "norm.weight"),
)
