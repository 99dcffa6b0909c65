"""Configs of the released models by name, as in their config.json."""

import dataclasses

from deepseek_jax.errors import UserError
from deepseek_jax.models.config import ModelConfig, RopeScaling

V1_7B = ModelConfig(
    vocab_size=102400,
    hidden_size=4096,
    num_hidden_layers=30,
    intermediate_size=11008,
    initializer_range=0.02,
    max_position_embeddings=4096,
    layer_types=("gqa",),
    mlp_layer_types=("dense",),
    first_k_dense_replace=0,
    num_attention_heads=32,
    num_key_value_heads=32,
    rope_interleave=False,
    num_nextn_predict_layers=0,
)

V1_67B = dataclasses.replace(
    V1_7B,
    hidden_size=8192,
    num_hidden_layers=95,
    intermediate_size=22016,
    num_attention_heads=64,
    num_key_value_heads=8,
)

MOE_16B = dataclasses.replace(
    V1_7B,
    hidden_size=2048,
    num_hidden_layers=28,
    intermediate_size=10944,
    mlp_layer_types=(),
    first_k_dense_replace=1,
    num_attention_heads=16,
    num_key_value_heads=16,
    n_routed_experts=64,
    num_experts_per_tok=6,
    n_shared_experts=2,
    moe_intermediate_size=1408,
    scoring_func="softmax",
    topk_method="greedy",
    n_group=1,
    topk_group=1,
    norm_topk_prob=False,
    routed_scaling_factor=1.0,
)

V2_LITE = ModelConfig(
    vocab_size=102400,
    hidden_size=2048,
    num_hidden_layers=27,
    intermediate_size=10944,
    initializer_range=0.02,
    first_k_dense_replace=1,
    num_attention_heads=16,
    q_lora_rank=0,
    rope_scaling=RopeScaling(factor=40.0, mscale=0.707, mscale_all_dim=0.707),
    n_routed_experts=64,
    num_experts_per_tok=6,
    n_shared_experts=2,
    moe_intermediate_size=1408,
    scoring_func="softmax",
    topk_method="greedy",
    n_group=1,
    topk_group=1,
    norm_topk_prob=False,
    routed_scaling_factor=1.0,
    num_nextn_predict_layers=0,
)

V2 = dataclasses.replace(
    V2_LITE,
    hidden_size=5120,
    num_hidden_layers=60,
    intermediate_size=12288,
    num_attention_heads=128,
    q_lora_rank=1536,
    n_routed_experts=160,
    moe_intermediate_size=1536,
    topk_method="group_limited_greedy",
    n_group=8,
    topk_group=3,
    routed_scaling_factor=16.0,
)

V3 = ModelConfig(initializer_range=0.02, rope_scaling=RopeScaling(factor=40.0))

V32 = dataclasses.replace(V3, layer_types=("dsa",))

V4_FLASH = ModelConfig(
    hidden_size=4096,
    num_hidden_layers=43,
    initializer_range=0.02,
    max_position_embeddings=1048576,
    layer_types=("window", "window", *("csa", "hca") * 20, "csa", "window"),
    first_k_dense_replace=0,
    num_hash_layers=3,
    num_attention_heads=64,
    head_dim=512,
    q_lora_rank=1024,
    index_topk=512,
    rope_scaling=RopeScaling(factor=16.0, original_max_position_embeddings=65536, mscale_all_dim=0.0),
    swiglu_limit=10.0,
    num_experts_per_tok=6,
    scoring_func="sqrtsoftplus",
    n_group=1,
    topk_group=1,
    routed_scaling_factor=1.5,
    hc_mult=4,
)

V4_PRO = dataclasses.replace(
    V4_FLASH,
    hidden_size=7168,
    num_hidden_layers=61,
    layer_types=("hca", "hca", *("csa", "hca") * 29, "csa", "window"),
    num_attention_heads=128,
    q_lora_rank=1536,
    index_topk=1024,
    o_groups=16,
    n_routed_experts=384,
    moe_intermediate_size=3072,
    routed_scaling_factor=2.5,
)

PRESETS = {
    "v1-7b": V1_7B,
    "v1-67b": V1_67B,
    "moe-16b": MOE_16B,
    "v2-lite": V2_LITE,
    "v2": V2,
    "v3": V3,
    "v3.1": V3,
    "r1": V3,
    "v3.2": V32,
    "v4-flash": V4_FLASH,
    "v4-pro": V4_PRO,
}


def preset(name: str) -> ModelConfig:
    """The config of a released model; `name` is case-insensitive.  Raises UserError for an unknown name."""
    if name.lower() not in PRESETS:
        raise UserError(f"there is no released model {name!r}; choose one of {', '.join(PRESETS)}.")
    return PRESETS[name.lower()]
