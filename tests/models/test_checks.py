"""Checks of ModelConfig: every attention combines with every feed-forward, and impossible settings are refused."""

import dataclasses
import itertools

import pytest

from deepseek_jax.errors import UserError
from deepseek_jax.models.checks import OF_ATTENTION, OF_FEED_FORWARD
from deepseek_jax.models.config import ModelConfig, RopeScaling

SMALL = ModelConfig(
    num_hidden_layers=4,
    first_k_dense_replace=0,
    num_attention_heads=8,
    num_key_value_heads=2,
    n_routed_experts=16,
    n_group=4,
    topk_group=2,
)


COMBINATIONS = [*itertools.product(OF_ATTENTION, OF_FEED_FORWARD, (0, 4))]


@pytest.mark.parametrize("attention, feed_forward, streams", COMBINATIONS)
def test_every_attention_combines_with_every_feed_forward(attention, feed_forward, streams):
    changes = {"layer_types": (attention,), "mlp_layer_types": (feed_forward,), "hc_mult": streams}
    config = dataclasses.replace(SMALL, **changes)
    assert config.attention_kinds == (attention,) * 5
    assert config.feed_forward_kinds == (feed_forward,) * 4 + ("dense" if feed_forward == "dense" else "moe",)


def of(attention: str, **changes) -> dict:
    return {"layer_types": (attention,)} | changes


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"hidden_size": 0}, "hidden_size is 0; it must be at least 1"),
        ({"max_position_embeddings": 0}, "max_position_embeddings is 0; it must be at least 1"),
        ({"max_position_embeddings": -1}, "max_position_embeddings is -1; it must be at least 1"),
        ({"layer_types": ("mha",)}, "'mha'; each must be one of gqa, mla"),
        ({"layer_types": ()}, "names 0 layers"),
        ({"layer_types": ("mla",) * 6}, r"names 6 layers; give one kind for all, or 4 .*, or 5 with the MTP modules"),
        ({"layer_types": ("mla",) * 5, "num_nextn_predict_layers": 0}, r"or 4 \(model.num_hidden_layers\)\.$"),
        ({"mlp_layer_types": ("swiglu",)}, "'swiglu'; each must be one of dense, moe"),
        ({"mlp_layer_types": ("moe", "dense")}, "names 2 layers; give none, one or 4"),
        ({"first_k_dense_replace": 5}, "between 0 and model.num_hidden_layers"),
        ({"first_k_dense_replace": 1, "num_hash_layers": 4}, "num_hash_layers is 4, but .* only 3 are not dense"),
        ({"num_nextn_predict_layers": -1}, "num_nextn_predict_layers is -1"),
        (
            {"num_nextn_predict_layers": 10**12},
            "num_nextn_predict_layers is 1,000,000,000,000; it must be at most 100,000",
        ),
        ({"num_hidden_layers": 10**12}, "num_hidden_layers is 1,000,000,000,000; it must be at most 100,000"),
        ({"n_routed_experts": 10**12}, "n_routed_experts is 1,000,000,000,000; it must be at most 100,000"),
        (of("gqa", num_key_value_heads=3), r"num_attention_heads \(8\) must be a multiple of num_key_value_heads"),
        (of("gqa", num_key_value_heads=0), "gqa attention needs at least 1"),
        (of("gqa", head_dim=7), "head_dim is 7; rotary pairs"),
        (of("mla", qk_rope_head_dim=5), "qk_rope_head_dim is 5; rotary pairs"),
        (of("mla", kv_lora_rank=0), "mla attention needs at least 1"),
        (of("mla", q_lora_rank=-1), "q_lora_rank is -1"),
        (of("dsa", q_lora_rank=0), "q_lora_rank is 0; dsa attention needs"),
        (of("dsa", qk_nope_head_dim=0), "qk_nope_head_dim is 0; dsa attention needs"),
        (of("dsa", index_topk=0), "index_topk is 0; dsa attention needs"),
        (of("dsa", index_head_dim=32), r"index_head_dim \(32\) must be at least qk_rope_head_dim \(64\)"),
        (of("window", sliding_window=0), "sliding_window is 0; window attention needs"),
        (of("window", o_groups=3), "multiple of o_groups"),
        (of("window", head_dim=32), r"qk_rope_head_dim \(64\) must not exceed head_dim"),
        (of("window", attention_bias=True), "attention_bias is true, and window attention has no biases"),
        (of("csa", o_groups=0), "o_groups is 0; csa attention needs"),
        (of("csa", csa_rate=0), "csa_rate is 0"),
        (of("hca", o_lora_rank=0), "o_lora_rank is 0; hca attention needs"),
        (of("hca", hca_rate=0), "hca_rate is 0"),
        ({"hc_mult": -1}, "hc_mult is -1"),
        ({"hc_mult": 2, "hc_sinkhorn_iters": 0}, "hc_sinkhorn_iters is 0; a model with hyper-connections"),
        ({"mlp_layer_types": ("dense",), "intermediate_size": 0}, "intermediate_size is 0; dense feed-forward needs"),
        ({"mlp_layer_types": ("hash_moe",), "moe_intermediate_size": 0}, "hash_moe feed-forward needs at least 1"),
        ({"n_shared_experts": -1}, "n_shared_experts is -1"),
        ({"n_routed_experts": 0}, "n_routed_experts is 0; a mixture of experts needs at least 1"),
        ({"n_routed_experts": 18}, r"n_routed_experts \(18\) must be a multiple of n_group \(4\)"),
        ({"topk_group": 5}, r"topk_group \(5\) must lie between 1 and model.n_group"),
        ({"num_experts_per_tok": 9}, "between 1 and 8, the number of experts in the kept groups"),
        ({"masked_top_experts": 1}, "of 8 experts in the kept groups .* at most 0"),
        ({"masked_top_experts": -1}, "masked_top_experts is -1; it must be at least 0"),
        ({"topk_method": "round_robin", "masked_top_experts": 1}, "round_robin ranks none"),
        ({"n_group": 16, "topk_group": 8}, "at least 2 experts"),
        ({"scoring_func": "tanh"}, "scoring_func is 'tanh'"),
        ({"topk_method": "best"}, "topk_method is 'best'"),
        ({"swiglu_limit": -1.0}, "swiglu_limit is -1.0"),
        ({"rms_norm_eps": -1e-6}, "rms_norm_eps is -1e-06"),
        ({"rope_theta": 0.0}, "rope_theta is 0.0; it must be above 0"),
        ({"rope_scaling": RopeScaling(factor=0.5)}, "factor is 0.5; it must be at least 1"),
        ({"rope_scaling": RopeScaling(factor=4.0), "rope_theta": 1.0}, "rope_theta is 1.0; with rope_scaling it must"),
        ({"rope_scaling": RopeScaling(beta_fast=1.0, beta_slow=32.0)}, r"beta_slow \(32.0\) between 0 and beta_fast"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(SMALL, **changes)
