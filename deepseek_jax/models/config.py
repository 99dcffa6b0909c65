"""ModelConfig: one frozen description of a DeepSeek decoder, with fields named as in the released config.json."""

import dataclasses
import math

from deepseek_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """YaRN context extension (arXiv:2309.00071); `factor` 1 leaves plain rotary embeddings.

    `mscale` scales the rotated dimensions, `mscale_all_dim` the softmax: two numbers, often confused.
    """

    factor: float = 1.0
    original_max_position_embeddings: int = 4096
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 1.0
    mscale_all_dim: float = 1.0

    def magnitude(self, mscale: float) -> float:
        """YaRN's 0.1 m ln(factor) + 1; 1 where the context is not extended."""
        return 0.1 * mscale * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Sizes and choices of a DeepSeek-V3 decoder (arXiv:2412.19437, section 2); defaults are the 671B model's."""

    vocab_size: int = 129280
    hidden_size: int = 7168
    num_hidden_layers: int = 61
    intermediate_size: int = 18432
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    initializer_range: float = 0.006

    # Multi-head latent attention. q_lora_rank 0 projects queries directly (config.json: null).
    num_attention_heads: int = 128
    q_lora_rank: int = 1536
    kv_lora_rank: int = 512
    qk_nope_head_dim: int = 128
    qk_rope_head_dim: int = 64
    v_head_dim: int = 128
    attention_bias: bool = False
    rope_theta: float = 10000.0
    rope_interleave: bool = True
    rope_scaling: RopeScaling = RopeScaling()
    max_position_embeddings: int = 163840

    # Mixture of experts; the first `first_k_dense_replace` layers keep a dense feed-forward.
    first_k_dense_replace: int = 3
    n_routed_experts: int = 256
    num_experts_per_tok: int = 8
    n_shared_experts: int = 1
    moe_intermediate_size: int = 2048
    n_group: int = 8
    topk_group: int = 4
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 2.5

    # Multi-token prediction modules after the main stack.
    num_nextn_predict_layers: int = 1

    def __post_init__(self):
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "kv_lora_rank"):
            if getattr(self, name) < 1:
                raise UserError(f"model.{name} is {getattr(self, name)}; it must be at least 1.")
        if self.qk_rope_head_dim % 2:
            raise UserError(f"model.qk_rope_head_dim is {self.qk_rope_head_dim}; rotary pairs need an even number.")
        if not 0 <= self.first_k_dense_replace <= self.num_hidden_layers:
            raise UserError(
                f"model.first_k_dense_replace is {self.first_k_dense_replace}; "
                f"it must lie between 0 and model.num_hidden_layers ({self.num_hidden_layers})."
            )
        if self.num_moe_layers:
            self._check_experts()

    def _check_experts(self):
        if self.n_routed_experts % self.n_group:
            raise UserError(
                f"model.n_routed_experts ({self.n_routed_experts}) must be a multiple of n_group ({self.n_group})."
            )
        if not 1 <= self.topk_group <= self.n_group:
            raise UserError(
                f"model.topk_group ({self.topk_group}) must lie between 1 and model.n_group ({self.n_group})."
            )
        reachable = self.n_routed_experts // self.n_group * self.topk_group
        if not 1 <= self.num_experts_per_tok <= reachable:
            raise UserError(
                f"model.num_experts_per_tok ({self.num_experts_per_tok}) must lie between 1 and {reachable}, "
                "the number of experts in the kept groups."
            )
        if self.n_group > 1 and self.n_routed_experts // self.n_group < 2:
            raise UserError("a group's score is the sum of its two best experts: give each group at least 2 experts.")

    @property
    def num_moe_layers(self) -> int:
        return self.num_hidden_layers - self.first_k_dense_replace

    @property
    def qk_head_dim(self) -> int:
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def softmax_scale(self) -> float:
        """1/sqrt(query width), times YaRN's squared magnitude (V2 paper, appendix; V3, section 4.3)."""
        return self.qk_head_dim**-0.5 * self.rope_scaling.magnitude(self.rope_scaling.mscale_all_dim) ** 2
