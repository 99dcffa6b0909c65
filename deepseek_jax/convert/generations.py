"""Which fields the config.json of each model_type contains, and which it implies: one entry per model generation."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from deepseek_jax.convert import rope_json
from deepseek_jax.models.config import ModelConfig

COMMON = (
    "vocab_size hidden_size num_hidden_layers rms_norm_eps tie_word_embeddings initializer_range "
    "max_position_embeddings num_attention_heads attention_bias"
).split()
GROUPED = ["num_key_value_heads", "head_dim"]
LATENT = ["q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"]
INDEXER = ["index_n_heads", "index_head_dim", "index_topk"]
DENSE = ["intermediate_size"]
EXPERTS = ["n_routed_experts", "num_experts_per_tok", "n_shared_experts", "moe_intermediate_size"]
IN_GROUPS = ["n_group", "topk_group", "routed_scaling_factor"]
OF_V3 = ["first_k_dense_replace", "norm_topk_prob", "num_nextn_predict_layers"]
OF_V4 = (
    "q_lora_rank head_dim qk_rope_head_dim sliding_window csa_rate hca_rate o_groups o_lora_rank compress_rope_theta "
    "n_routed_experts num_experts_per_tok n_shared_experts moe_intermediate_size routed_scaling_factor swiglu_limit "
    "num_hash_layers hc_mult hc_sinkhorn_iters hc_eps"
).split()

# Fields that say which layer is of which kind; they overlap.
SCHEDULE = ("layer_types", "mlp_layer_types", "first_k_dense_replace", "num_hash_layers")
FEED_FORWARDS_IN_ORDER = ("dense", "hash_moe", "moe")

# Implied in every generation that does not name the field itself.
WITHOUT = {
    "mlp_bias": False,
    "swiglu_limit": 0.0,
    "hc_mult": 0,
    "hc_manifold": True,
    "num_hash_layers": 0,
    "num_nextn_predict_layers": 0,
    "masked_top_experts": 0,
}


@dataclasses.dataclass(frozen=True)
class Generation:
    """A config.json of this generation has `keys`, named as in ModelConfig; `implied` fields always have these values.

    A file that gives an implied field another value is refused, except for `disregarded` fields, which are ignored.
    If `demands(config)` is false, a file could express the model, but other programs would not compute it correctly.
    """

    model_type: str
    architecture: str
    attentions: tuple[str, ...]
    feed_forwards: tuple[str, ...]
    keys: tuple[str, ...]
    implied: Mapping[str, Any]
    disregarded: tuple[str, ...] = ()
    demands: Callable[[ModelConfig], bool] = lambda config: True

    def describes(self, config: ModelConfig) -> bool:
        """Whether a config.json of this generation can fully express `config`."""
        attentions, feed_forwards = config.attention_kinds, config.feed_forward_kinds[: config.num_hidden_layers]
        return (
            set(attentions) <= set(self.attentions)
            and set(feed_forwards) <= set(self.feed_forwards)
            and list(feed_forwards) == sorted(feed_forwards, key=FEED_FORWARDS_IN_ORDER.index)
            and config.topk_method != "round_robin"
            and rope_json.can_say(config.rope_scaling)
            and all(getattr(config, name) == value for name, value in self.implied.items() if name not in SCHEDULE)
            and all(getattr(config, field.name) == field.default for field in _new_fields())
            and self.demands(config)
        )


def _generation(model_type, architecture, attentions, feed_forwards, keys, implied, **more) -> Generation:
    keys = (*COMMON, *keys)
    implied = {name: value for name, value in WITHOUT.items() if name not in keys} | implied
    if len(attentions) == 1:
        implied["layer_types"] = attentions
    return Generation(model_type, architecture, attentions, feed_forwards, keys, implied, **more)


SOFTMAX = {"scoring_func": "softmax"}
NOAUX = {"topk_method": "noaux_tc"}
UNGROUPED = {"n_group": 1, "topk_group": 1}

GENERATIONS = (
    _generation(
        "llama", "LlamaForCausalLM", ("gqa",), ("dense",),
        [*GROUPED, *DENSE, "mlp_bias"],
        {"mlp_layer_types": ("dense",), "first_k_dense_replace": 0, "rope_interleave": False},
    ),
    _generation(
        "deepseek", "DeepseekForCausalLM", ("gqa",), ("dense", "moe"),
        [*GROUPED, *DENSE, *EXPERTS, "first_k_dense_replace", "norm_topk_prob"],
        {**SOFTMAX, **UNGROUPED, "topk_method": "greedy", "routed_scaling_factor": 1.0, "rope_interleave": False},
        demands=lambda config: config.num_experts_per_tok > 1 or not config.norm_topk_prob,
    ),
    # V2's norm_topk_prob: Hugging Face ignores it, DeepSeek's code would normalise; all released files say false.
    _generation(
        "deepseek_v2", "DeepseekV2ForCausalLM", ("mla",), ("dense", "moe"),
        [*LATENT, *DENSE, *EXPERTS, *IN_GROUPS, "first_k_dense_replace", "topk_method", "mlp_bias"],
        {**SOFTMAX, "norm_topk_prob": False, "rope_interleave": True},
        disregarded=("norm_topk_prob",),
    ),
    _generation(
        "deepseek_v3", "DeepseekV3ForCausalLM", ("mla",), ("dense", "moe"),
        [*LATENT, *DENSE, *EXPERTS, *IN_GROUPS, *OF_V3, "rope_interleave"],
        {**NOAUX, "scoring_func": "sigmoid"},
    ),
    _generation(
        "deepseek_v32", "DeepseekV32ForCausalLM", ("dsa",), ("dense", "moe"),
        [*LATENT, *INDEXER, *DENSE, *EXPERTS, *IN_GROUPS, *OF_V3],
        {**NOAUX, "scoring_func": "sigmoid", "rope_interleave": True},
    ),
    _generation(
        "deepseek_v4", "DeepseekV4ForCausalLM", ("window", "csa", "hca"), ("moe", "hash_moe"),
        [*OF_V4, *INDEXER, "num_nextn_predict_layers"],
        {**NOAUX, **UNGROUPED, "scoring_func": "sqrtsoftplus", "norm_topk_prob": True, "first_k_dense_replace": 0},
        demands=lambda config: config.swiglu_limit > 0 and config.hc_mult > 0 and config.n_shared_experts == 1,
    ),
)  # fmt: skip


def _new_fields() -> list[dataclasses.Field]:
    """Fields of ModelConfig that no generation mentions: sizes or switches that a researcher added."""
    heard_of = {"rope_theta", "rope_scaling", *SCHEDULE}
    heard_of = heard_of.union(*((*each.keys, *each.implied, *each.disregarded) for each in GENERATIONS))
    return [field for field in dataclasses.fields(ModelConfig) if field.name not in heard_of]


def generation_of(config: ModelConfig) -> Generation | None:
    """The released generation whose config.json can express `config`; None if there is none."""
    return next((generation for generation in GENERATIONS if generation.describes(config)), None)
