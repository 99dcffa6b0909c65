"""Settings that change nothing because of another setting: an ablation of them would compare equal runs."""

from collections.abc import Iterable

from deepseek_jax.config import AnyExperiment
from deepseek_jax.models import checks
from deepseek_jax.models.hybrid_config import NEEDED

# Which of a section's choices use a key.
OF_SCHEDULE = {
    "final_ratio": ("cosine", "polynomial", "one_cycle", "wsd", "warm_restarts", "v3", "range"),
    "decay_ratio": ("step", "multi_step", "exponential", "plateau"),
    "milestones": ("multi_step",),
    "step_every": ("step", "exponential", "plateau", "warm_restarts"),
    "decay_fraction": ("wsd",),
    "rise_fraction": ("one_cycle",),
    "power": ("polynomial",),
    "cycle_growth": ("warm_restarts",),
    "patience": ("plateau",),
}
OF_OPTIMIZER = {
    "b1": ("adam", "adamw", "muon", "sgd", "rmsprop", "lion"),
    "b2": ("adam", "adamw", "muon", "rmsprop", "lion"),
    "eps": ("adam", "adamw", "muon", "rmsprop", "adagrad"),
}
OF_OBJECTIVE = {
    "focal_gamma": ("focal",),
    "huber_delta": ("huber",),
    "size_weight": ("boxes",),
    "offset_weight": ("boxes",),
}
CHOICES = {"optimizer": OF_OPTIMIZER, "optimizer.schedule": OF_SCHEDULE, "objective": OF_OBJECTIVE}


def _keys(section: str, names: str) -> tuple[str, ...]:
    return tuple(f"{section}.{name}" for name in names.split())


BLOCKS = _keys("model.convolution", "kernel_size convs_per_block norm activation pool pool_size residual")
SWITCHES = (  # a key, the value that turns something off, and the keys that then do nothing
    ("tune.lora.rank", 0, _keys("tune.lora", "alpha paths dora")),
    ("prune.method", "none", _keys("prune", "sparsity pattern scope paths begin end every")),
    ("prune.method", "zeros", _keys("prune", "sparsity pattern scope begin end every")),
    ("quantize.weights", "none", _keys("quantize", "paths trained")),
    ("arithmetic.kind", "plain", _keys("arithmetic", "paths ranges")),
    ("arithmetic.kind", "fp8", ("arithmetic.ranges",)),
    ("eval.samples", 0, ("eval.sample_tokens",)),
    ("router.bias_update_rate", 0, _keys("router", "bias_update_until recentre_bias")),
    ("mesh.stage", 1, _keys("train", "pipeline_microbatches pipeline_rounds")),
    ("mesh.expert", 1, ("router.capacity_factor",)),
    ("model.num_nextn_predict_layers", 0, _keys("loss", "mtp_weight mtp_weight_final mtp_switch")),
    ("model.hc_mult", 0, _keys("model", "hc_sinkhorn_iters hc_eps hc_manifold")),
    ("model.recurrent.kind", "none", _keys("model.recurrent", "hidden_size layers bidirectional")),
    ("model.attention.num_heads", 0, _keys("model.attention", "key_dim residual norm")),
    ("model.convolution.pool", "none", ("model.convolution.pool_size",)),
    ("model.convolution.kind", "blocks", _keys("model.convolution", "stages enlarge")),
    ("model.convolution.kind", "efficientnet_lite0", BLOCKS),
    ("model.convolution.filters", (), (*BLOCKS, *_keys("model.convolution", "kind stages enlarge"))),
)
ROPE = _keys("model.rope_scaling", "original_max_position_embeddings beta_fast beta_slow mscale mscale_all_dim")
ROUTING = "num_experts_per_tok n_shared_experts scoring_func topk_method norm_topk_prob routed_scaling_factor"
OF_EXPERTS = (
    *_keys("model", f"n_routed_experts {ROUTING} n_group topk_group masked_top_experts"),
    *_keys("loss", "sequence_balance batch_balance"),
    *_keys("router", "bias_update_rate bias_update_until recentre_bias capacity_factor"),
)


def sentences(experiment: AnyExperiment, keys: Iterable[str]) -> list[str]:
    """One sentence for each of `keys`, those that a user has set, that has no effect on `experiment`."""
    idle = idle_keys(experiment)
    return [f"{key} has no effect: {idle[key]}." for key in keys if key in idle]


def idle_keys(experiment: AnyExperiment) -> dict[str, str]:
    """{key that has no effect: why}.  Not complete: of keys that are not listed, some may have none either."""
    found = {}
    for section, uses in CHOICES.items():
        if (chosen := _value(experiment, f"{section}.name")) is not None:
            unused = [key for key, users in uses.items() if chosen not in users]
            found |= dict.fromkeys(_keys(section, " ".join(unused)), f"{section}.name is {chosen}")
    for switch, off, keys in SWITCHES:
        if _value(experiment, switch) == off:
            found |= dict.fromkeys(keys, f"{switch} is {off or repr(off)}")
    if experiment.prune.pattern:
        found = dict.fromkeys(_keys("prune", "sparsity scope"), f"prune.pattern is {experiment.prune.pattern}") | found
    return found | (_of_decoder if experiment.family == "language_model" else _of_hybrid)(experiment)


def _value(experiment, key: str):
    """The value of a dotted key; None if this family has no such key."""
    for name in key.split("."):
        experiment = getattr(experiment, name, None)
    return experiment


def _of_decoder(experiment) -> dict[str, str]:
    model, data = experiment.model, experiment.data
    kinds, found = sorted(set(model.attention_kinds)), {}
    for sizes, what, chosen in (
        (checks.OF_ATTENTION, "attention", kinds),
        (checks.OF_FEED_FORWARD, "feed-forward", sorted(set(model.feed_forward_kinds))),
    ):
        named, used = (set().union(*(sizes[kind] for kind in some)) for some in (sizes, chosen))
        # Also used by kinds that do not need them.
        unused = named - used - {"q_lora_rank", "qk_rope_head_dim"}
        found |= dict.fromkeys(_keys("model", " ".join(unused)), f"the model's {what} is {' and '.join(chosen)}")
    if "model.index_topk" in found:
        found |= dict.fromkeys(_keys("loss", "indexer_weight indexer_warmup"), "the model has no indexer")
    if not {"csa", "hca"} & {*kinds}:
        found["model.compress_rope_theta"] = "the model has no compressing attention"
    if model.rope_scaling.factor == 1:
        found |= dict.fromkeys(ROPE, "model.rope_scaling.factor is 1")
    if not any(map(checks.has_experts, model.feed_forward_kinds)):
        found |= dict.fromkeys(OF_EXPERTS, "the model has no routed experts")
    elif model.topk_method != "noaux_tc":
        biases = _keys("router", "bias_update_rate bias_update_until recentre_bias")
        found |= dict.fromkeys(biases, f"routers have no bias, as model.topk_method is {model.topk_method}")
    if model.mlp_layer_types:
        by_number = _keys("model", "first_k_dense_replace num_hash_layers")
        found |= dict.fromkeys(by_number, "model.mlp_layer_types names the feed-forward of every layer")
    if data.source != "mix":
        found["data.weights"] = f"data.source is {data.source}"
    if data.chat:
        found["data.text_field"] = f"data.chat is {data.chat}"
    return found


def _of_hybrid(experiment) -> dict[str, str]:
    model, text, found = experiment.model, experiment.augment.text, {}
    sizes = {"height", "width", "vocab_size", "embed_dim", "length"}.difference(NEEDED[model.input])
    found |= dict.fromkeys(_keys("model", " ".join(sizes)), f"model.input is {model.input}")
    if model.input != "image":
        found["model.sequence"] = f"model.input is {model.input}"
    if not (text.synonyms or text.insert):
        found["augment.text.thesaurus"] = "augment.text.synonyms and augment.text.insert are 0"
    return found
