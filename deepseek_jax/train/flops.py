"""Model FLOPs, counted exactly from the architecture, and what the hardware could do.

Counted are the matrix products that the model needs, two operations a multiply-add:

    forward = 2 (tokens * P + pairs * A)        training = 3 * forward (the backward pass is two products for each one)

P, parameters that one token is multiplied with: the projections of MLA, the dense feed-forward or the router with the
    K chosen and the shared experts (active parameters only), the head once for each depth of prediction.
A, multiply-adds a query-key pair: in each layer H (N + R) for the score and H V for the value, as MLA's value head (V)
    is narrower than its key head (N + R).
pairs: query-key pairs that may see each other: causal, so a document of length n has n (n + 1) / 2, not n^2, and
    packed documents do not see each other.

Not counted: embedding look-ups, norms, softmax, rotary embeddings, the optimizer, and what remat computes again.
"""

import jax

from deepseek_jax.models.config import ModelConfig

# Dense bfloat16 peak of one device as JAX counts devices, FLOP/s, from the vendors' data sheets; matched as a prefix of
# device_kind, longest first.
PEAKS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}


def training_flops(config: ModelConfig, tokens: float, pairs: float) -> float:
    """Of a step over this many tokens and visible query-key pairs, forward and backward."""
    layers = config.num_hidden_layers + config.num_nextn_predict_layers
    return 6 * (tokens * parameters_a_token(config) + pairs * layers * attention_a_pair(config))


def parameters_a_token(config: ModelConfig) -> int:
    """Parameters that each token is multiplied with; the head counts once for each depth of prediction."""
    D, depths = config.hidden_size, config.num_nextn_predict_layers
    dense = 3 * D * config.intermediate_size
    experts = config.num_experts_per_tok + config.n_shared_experts
    moe = D * config.n_routed_experts + 3 * D * experts * config.moe_intermediate_size
    feed_forward = config.first_k_dense_replace * dense + config.num_moe_layers * moe
    further = 2 * D * D + (moe if config.num_moe_layers else dense)  # joins state and embedding, then one more layer
    layers = config.num_hidden_layers + depths
    return (
        layers * _attention_parameters(config) + feed_forward + depths * further + (1 + depths) * D * config.vocab_size
    )


def _attention_parameters(config: ModelConfig) -> int:
    D, H, C, Q = config.hidden_size, config.num_attention_heads, config.kv_lora_rank, config.q_lora_rank
    query = D * Q + Q * H * config.qk_head_dim if Q else D * H * config.qk_head_dim
    latent = D * (C + config.qk_rope_head_dim) + C * H * (config.qk_nope_head_dim + config.v_head_dim)
    return query + latent + H * config.v_head_dim * D


def attention_a_pair(config: ModelConfig) -> int:
    """Multiply-adds of one layer for a query and a key it sees."""
    return config.num_attention_heads * (config.qk_head_dim + config.v_head_dim)


def peak_flops(device: jax.Device) -> float | None:
    """FLOP/s of a device at its best, None where the kind is not known (then there is no utilisation to report)."""
    for kind in sorted(PEAKS, key=len, reverse=True):
        if device.device_kind.startswith(kind):
            return PEAKS[kind]
    return None
