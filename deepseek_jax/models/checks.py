"""Validates a ModelConfig; each error is a UserError that says in one sentence what to change."""

from deepseek_jax.checking import at_least, choice
from deepseek_jax.errors import UserError

POSITIVE = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
LATENT = ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
INDEXER = ("index_n_heads", "index_head_dim", "index_topk")
WINDOWED = ("head_dim", "q_lora_rank", "sliding_window", "o_groups", "o_lora_rank")
OF_ATTENTION = {  # every kind of attention, and the sizes it needs
    "gqa": ("num_key_value_heads", "head_dim"),
    "mla": LATENT,
    "dsa": (*LATENT, "q_lora_rank", *INDEXER),
    "window": WINDOWED,
    "csa": (*WINDOWED, "csa_rate", *INDEXER),
    "hca": (*WINDOWED, "hca_rate"),
}
OF_V4 = {"window", "csa", "hca"}
LIKE: dict[str, str] = {}  # kinds of attention from plugins -> the one of the above that has their limits (parts.py)
ADDED_BY: dict[str, str] = {}  # parts from plugins -> the module that defines them
EXPERTS = ("moe_intermediate_size",)
OF_FEED_FORWARD = {"dense": ("intermediate_size",), "moe": EXPERTS, "hash_moe": EXPERTS}  # likewise
NOT_NEGATIVE = (
    "num_nextn_predict_layers q_lora_rank qk_rope_head_dim n_shared_experts hc_mult num_hash_layers swiglu_limit "
    "masked_top_experts rms_norm_eps hc_eps initializer_range"
).split()
# Layers and experts are enumerated one by one: a huge number would run out of memory before any error message.
COUNTED, MOST = ("num_hidden_layers", "num_nextn_predict_layers", "n_routed_experts"), 100_000
SCORING = ("softmax", "sigmoid", "sqrtsoftplus")
TOPK = ("greedy", "group_limited_greedy", "noaux_tc", "round_robin")
WITHOUT_GROUPS = ("greedy", "round_robin")


def check(config):
    """Raises UserError for the first invalid setting found."""
    _positive(config, POSITIVE, "it")
    for name in COUNTED:
        if getattr(config, name) > MOST:
            raise UserError(f"model.{name} is {getattr(config, name):,}; it must be at most {MOST:,}.")
    at_least("model", config, 0, *NOT_NEGATIVE)
    _check_schedule(config)
    for sizes, what, kinds in (
        (OF_ATTENTION, "attention", config.attention_kinds),
        (OF_FEED_FORWARD, "feed-forward", config.feed_forward_kinds),
    ):
        for kind in sorted(set(kinds)):
            _positive(config, sizes[kind], f"{kind} {what}")
    _check_rope(config)
    _check_attention(config, set(map(like, config.attention_kinds)))
    if any(map(has_experts, config.feed_forward_kinds)):
        _check_experts(config)
    if config.hc_mult:
        _positive(config, ("hc_sinkhorn_iters",), "a model with hyper-connections")


def like(attention: str) -> str:
    """The kind of attention whose limits and rotary embeddings this kind has: itself, unless a plugin added it."""
    return LIKE.get(attention, attention)


def plugins_of(config) -> list[str]:
    """The modules that define the model's parts from plugins; without a script, which cannot be imported."""
    kinds = {*config.attention_kinds, *config.feed_forward_kinds} & ADDED_BY.keys()
    return sorted({ADDED_BY[kind] for kind in kinds} - {"__main__"})


def has_experts(feed_forward: str) -> bool:
    """Whether a kind of feed-forward has routed experts; if so it needs their size."""
    return set(EXPERTS) <= set(OF_FEED_FORWARD[feed_forward])


def _positive(config, names, what):
    for name in names:
        if getattr(config, name) < 1:
            needs = "it must be" if what == "it" else f"{what} needs"
            raise UserError(f"model.{name} is {getattr(config, name)}; {needs} at least 1.")


def _check_schedule(config):
    depth, further = config.num_hidden_layers, config.num_nextn_predict_layers
    for name, known in (("layer_types", OF_ATTENTION), ("mlp_layer_types", OF_FEED_FORWARD)):
        given = getattr(config, name)
        for kind in given:
            if kind not in known:
                raise UserError(
                    f"model.{name} has {kind!r}; each must be one of {', '.join(known)}, or be added by a module that "
                    "`plugins` names."
                )
    if len(config.layer_types) not in (1, depth, depth + further):
        raise UserError(
            f"model.layer_types names {len(config.layer_types)} layers; give one kind for all, or "
            f"{depth} (model.num_hidden_layers)" + (f", or {depth + further} with the MTP modules." if further else ".")
        )
    if len(config.mlp_layer_types) not in (0, 1, depth):
        raise UserError(f"model.mlp_layer_types names {len(config.mlp_layer_types)} layers; give none, one or {depth}.")
    if not 0 <= config.first_k_dense_replace <= depth:
        raise UserError(
            f"model.first_k_dense_replace is {config.first_k_dense_replace}; "
            f"it must lie between 0 and model.num_hidden_layers ({depth})."
        )
    if config.num_hash_layers > depth - config.first_k_dense_replace:
        raise UserError(
            f"model.num_hash_layers is {config.num_hash_layers}, but of model.num_hidden_layers ({depth}) only "
            f"{depth - config.first_k_dense_replace} are not dense."
        )


def _check_rope(config):
    for name in ("rope_theta", "compress_rope_theta"):
        if getattr(config, name) <= 0:
            raise UserError(f"model.{name} is {getattr(config, name)}; it must be above 0.")
    scaling = config.rope_scaling
    if scaling.factor < 1:
        raise UserError(f"model.rope_scaling.factor is {scaling.factor}; it must be at least 1 (1: no extension).")
    for name in ("rope_theta", "compress_rope_theta"):
        if scaling.factor > 1 and getattr(config, name) <= 1:
            raise UserError(f"model.{name} is {getattr(config, name)}; with rope_scaling it must be above 1.")
    if scaling.original_max_position_embeddings < 1 or not 0 < scaling.beta_slow < scaling.beta_fast:
        raise UserError(
            f"model.rope_scaling must have original_max_position_embeddings "
            f"({scaling.original_max_position_embeddings}) above 0, and beta_slow ({scaling.beta_slow}) between 0 and "
            f"beta_fast ({scaling.beta_fast})."
        )


def _check_attention(config, kinds):
    if config.qk_rope_head_dim % 2:
        raise UserError(f"model.qk_rope_head_dim is {config.qk_rope_head_dim}; rotary pairs need an even number.")
    if "gqa" in kinds:
        if config.head_dim % 2:
            raise UserError(f"model.head_dim is {config.head_dim}; rotary pairs need an even number.")
        if config.num_attention_heads % config.num_key_value_heads:
            raise UserError(
                f"model.num_attention_heads ({config.num_attention_heads}) must be a multiple of "
                f"num_key_value_heads ({config.num_key_value_heads})."
            )
    if config.attention_bias and kinds <= OF_V4:
        without = ", ".join(sorted(kinds))
        raise UserError(f"model.attention_bias is true, and {without} attention has no biases; set it to false.")
    if kinds & OF_V4:
        if config.num_attention_heads % config.o_groups:
            raise UserError(
                f"model.num_attention_heads ({config.num_attention_heads}) must be a multiple of "
                f"o_groups ({config.o_groups})."
            )
        if config.qk_rope_head_dim > config.head_dim:
            raise UserError(
                f"model.qk_rope_head_dim ({config.qk_rope_head_dim}) must not exceed head_dim ({config.head_dim}): "
                "it is the rotated part of each head."
            )
    if kinds & {"dsa", "csa"} and config.qk_rope_head_dim > config.index_head_dim:
        raise UserError(
            f"model.index_head_dim ({config.index_head_dim}) must be at least "
            f"qk_rope_head_dim ({config.qk_rope_head_dim}), the rotated part of each head."
        )


def _check_experts(config):
    _positive(config, ("n_routed_experts",), "a mixture of experts")
    experts, groups, kept = config.n_routed_experts, config.n_group, config.topk_group
    if config.topk_method in WITHOUT_GROUPS:
        groups, kept = 1, 1
    choice("model.scoring_func", config.scoring_func, SCORING)
    choice("model.topk_method", config.topk_method, TOPK)
    if groups < 1 or experts % groups:
        raise UserError(f"model.n_routed_experts ({experts}) must be a multiple of n_group ({groups}).")
    if not 1 <= kept <= groups:
        raise UserError(f"model.topk_group ({kept}) must lie between 1 and model.n_group ({groups}).")
    reachable = experts // groups * kept
    if not 1 <= config.num_experts_per_tok <= reachable:
        raise UserError(
            f"model.num_experts_per_tok ({config.num_experts_per_tok}) must lie between 1 and {reachable}, "
            "the number of experts in the kept groups."
        )
    if config.masked_top_experts > (most := reachable - config.num_experts_per_tok):
        raise UserError(
            f"model.masked_top_experts is {config.masked_top_experts}; of {reachable} experts in the kept groups it "
            f"must leave num_experts_per_tok ({config.num_experts_per_tok}), so it may be at most {most}."
        )
    if config.masked_top_experts and config.topk_method == "round_robin":
        raise UserError("model.masked_top_experts skips the best experts; topk_method round_robin ranks none.")
    if config.topk_method == "noaux_tc" and groups > 1 and experts // groups < 2:
        raise UserError("a group's score is the sum of its two best experts: give each group at least 2 experts.")
