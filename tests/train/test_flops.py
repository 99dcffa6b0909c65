"""The FLOP formula against the released sizes of DeepSeek-V3 and against a count by hand."""

import dataclasses

import pytest

from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.counts import multiplied
from deepseek_jax.models.flops import attention_a_token, flops_a_token
from deepseek_jax.train.flops import peak_flops, training_flops

V3 = ModelConfig(num_nextn_predict_layers=0)


def test_activated_parameters_of_v3_match_the_paper():
    """37.55B are activated per token: multiplied parameters, the embedding table, and the norms."""
    embedding, norms = V3.vocab_size * V3.hidden_size, 61 * (2 * 7168 + 1536 + 512) + 7168
    assert multiplied(V3) + embedding + norms == 37_552_282_624


def test_flops_of_a_tiny_model_by_hand():
    config = ModelConfig(
        vocab_size=10,
        hidden_size=4,
        num_hidden_layers=2,
        intermediate_size=6,
        num_attention_heads=2,
        q_lora_rank=3,
        kv_lora_rank=5,
        qk_nope_head_dim=4,
        qk_rope_head_dim=2,
        v_head_dim=3,
        first_k_dense_replace=1,
        n_routed_experts=8,
        num_experts_per_tok=2,
        n_shared_experts=1,
        moe_intermediate_size=7,
        n_group=1,
        topk_group=1,
        num_nextn_predict_layers=1,
    )
    attention = 4 * 3 + 3 * 2 * 6 + 4 * (5 + 2) + 5 * 2 * (4 + 3) + 2 * 3 * 4
    dense, moe, head = 3 * 4 * 6, 4 * 8 + 3 * 3 * 4 * 7, 4 * 10
    further = 2 * 4 * 4 + attention + moe + head
    assert multiplied(config) == 2 * attention + dense + moe + head + further
    assert attention_a_token(config, 7) == 3 * 7 * 2 * (6 + 3)  # the value head is narrower than the key head
    assert training_flops(config, tokens=5, attention=810) == 6 * (5 * multiplied(config) + 810)
    main = 2 * attention + dense + moe + head
    tied = dataclasses.replace(config, tie_word_embeddings=True)
    assert multiplied(tied) == multiplied(config), "the embedding is the head, for each depth"
    assert flops_a_token(config, 7) == 2 * (main + 2 * 7 * 2 * (6 + 3)), "without the MTP module"


def test_a_query_projection_without_low_rank_is_one_product():
    direct = dataclasses.replace(V3, q_lora_rank=0)
    D, H, wide = V3.hidden_size, V3.num_attention_heads, V3.qk_head_dim
    difference = D * H * wide - (D * 1536 + 1536 * H * wide)
    assert multiplied(direct) - multiplied(V3) == V3.num_hidden_layers * difference


@pytest.mark.parametrize(
    "kind, peak",
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5p", 459e12),
        ("cpu", None),
    ],
)
def test_peak_flops_are_looked_up_by_the_longest_matching_name(kind, peak):
    class Device:
        device_kind = kind

    assert peak_flops(Device()) == peak
