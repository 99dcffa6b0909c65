"""ModelConfig: one frozen description of a DeepSeek decoder, with fields named as in the released config.json."""

import dataclasses
import math

from deepseek_jax import part_settings
from deepseek_jax.models import checks


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """YaRN context extension (arXiv:2309.00071); `factor` 1 means plain rotary embeddings.

    `mscale` and `mscale_all_dim` are often confused.  Rotated dimensions are scaled by magnitude(mscale) /
    magnitude(mscale_all_dim), latent attention's softmax by magnitude(mscale_all_dim)^2.  Grouped-query attention has
    no such softmax factor, so it has YaRN's full temperature only if `mscale_all_dim` is 0.
    """

    factor: float = 1.0
    original_max_position_embeddings: int = 4096
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 1.0
    mscale_all_dim: float = 1.0

    def magnitude(self, mscale: float) -> float:
        """YaRN's 0.1 mscale ln(factor) + 1, or 1 if the context is not extended (factor 1)."""
        return 0.1 * mscale * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Sizes and choices of any DeepSeek decoder; defaults are V3's 671B (arXiv:2412.19437, section 2).

    Each layer combines any attention with any feed-forward; the form of the residual is the same in all layers:

    attention       gqa     grouped-query or multi-head, as in V1 and MoE: num_key_value_heads, head_dim
                    mla     latent, as in V2 and V3: kv_lora_rank, qk_nope_head_dim, qk_rope_head_dim, v_head_dim
                    dsa     mla over the index_topk keys that a lightning indexer picks, as in V3.2
                    window  the sliding_window newest tokens, with sinks, as in V4: head_dim, o_groups, o_lora_rank
                    csa     window, plus the index_topk best-scoring compressed blocks of csa_rate tokens (V4)
                    hca     window, plus all compressed blocks of hca_rate tokens (V4)
    feed-forward    dense, moe (top-k of scores), hash_moe (experts looked up by token id, V4)
    residual        hc_mult 0: plain; n: manifold-constrained hyper-connections over n streams (V4)
    """

    vocab_size: int = 129280
    hidden_size: int = 7168
    num_hidden_layers: int = 61
    intermediate_size: int = 18432
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    initializer_range: float = 0.006
    max_position_embeddings: int = 163840

    # The attention of every layer, then of every MTP module.  A single name applies to all; if only the layers are
    # named, MTP modules use the last one.
    layer_types: tuple[str, ...] = ("mla",)
    # The feed-forward of every layer.  Empty: `first_k_dense_replace` dense, then `num_hash_layers` hash_moe, then moe.
    mlp_layer_types: tuple[str, ...] = ()
    first_k_dense_replace: int = 3
    num_hash_layers: int = 0

    # Attention.  With q_lora_rank 0 (null in config.json) queries are projected directly, without a latent.
    num_attention_heads: int = 128
    num_key_value_heads: int = 128
    head_dim: int = 128
    q_lora_rank: int = 1536
    kv_lora_rank: int = 512
    qk_nope_head_dim: int = 128
    qk_rope_head_dim: int = 64
    v_head_dim: int = 128
    attention_bias: bool = False
    index_n_heads: int = 64
    index_head_dim: int = 128
    index_topk: int = 2048
    sliding_window: int = 128
    csa_rate: int = 4
    hca_rate: int = 128
    o_groups: int = 8
    o_lora_rank: int = 1024

    # Rotary embeddings.  csa and hca use compress_rope_theta; window attention never applies rope_scaling.
    rope_theta: float = 10000.0
    compress_rope_theta: float = 160000.0
    rope_interleave: bool = True
    rope_scaling: RopeScaling = RopeScaling()

    # Feed-forward.  swiglu_limit 0: no clamping of activations.
    mlp_bias: bool = False
    swiglu_limit: float = 0.0
    n_routed_experts: int = 256
    num_experts_per_tok: int = 8
    n_shared_experts: int = 1
    moe_intermediate_size: int = 2048
    scoring_func: str = "sigmoid"  # softmax (MoE, V2), sigmoid (V3), sqrtsoftplus (V4)
    topk_method: str = "noaux_tc"  # greedy, group_limited_greedy (V2), noaux_tc (V3, V4: a bias), round_robin (timing)
    n_group: int = 8
    topk_group: int = 4
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 2.5
    masked_top_experts: int = 0  # an ablation: each token skips this many of its best experts (DeepSeekMoE, 4.5)

    # Hyper-connections.
    hc_mult: int = 0
    hc_sinkhorn_iters: int = 20
    hc_eps: float = 1e-6
    hc_manifold: bool = True  # False: unconstrained hyper-connections (arXiv:2409.19606), whose streams may grow

    # Multi-token prediction modules after the main stack.
    num_nextn_predict_layers: int = 1

    # Settings of those kinds above that plugins add, from the experiment's section of this name; else their defaults.
    parts: part_settings.Parts = part_settings.Parts()

    def __post_init__(self):
        checks.check(self)
        kinds = *self.attention_kinds, *self.feed_forward_kinds
        object.__setattr__(self, "parts", part_settings.of(kinds, self.parts))

    @property
    def attention_kinds(self) -> tuple[str, ...]:
        """The attention of each layer, then of each MTP module."""
        total = self.num_hidden_layers + self.num_nextn_predict_layers
        return self.layer_types + self.layer_types[-1:] * (total - len(self.layer_types))

    @property
    def feed_forward_kinds(self) -> tuple[str, ...]:
        """The feed-forward of each layer, then of each MTP module: the last layer's, or moe if that is hash_moe."""
        kinds = self.mlp_layer_types or tuple(self._feed_forward(index) for index in range(self.num_hidden_layers))
        if len(kinds) == 1:
            kinds *= self.num_hidden_layers
        further = {"hash_moe": "moe"}.get(kinds[-1], kinds[-1])
        return kinds + (further,) * self.num_nextn_predict_layers

    def _feed_forward(self, index: int) -> str:
        hashed = index < self.first_k_dense_replace + self.num_hash_layers
        return "dense" if index < self.first_k_dense_replace else "hash_moe" if hashed else "moe"

    @property
    def num_moe_layers(self) -> int:
        """Number of layers with routed experts, not counting MTP modules."""
        return sum(map(checks.has_experts, self.feed_forward_kinds[: self.num_hidden_layers]))

    def without_mtp(self) -> "ModelConfig":
        """The config of the main model alone, without MTP modules."""
        of_layers = self.layer_types[: self.num_hidden_layers]
        return dataclasses.replace(self, num_nextn_predict_layers=0, layer_types=of_layers)

    @property
    def qk_head_dim(self) -> int:
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def softmax_scale(self) -> float:
        """For mla: 1/sqrt(query width) times YaRN's squared magnitude (V2 paper, appendix; V3, section 4.3)."""
        return self.qk_head_dim**-0.5 * self.rope_scaling.magnitude(self.rope_scaling.mscale_all_dim) ** 2
