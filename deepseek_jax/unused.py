"""Settings that change nothing because of another setting: an ablation of them would compare equal runs."""

import dataclasses
from collections.abc import Collection

from deepseek_jax.config import NAMED, OPTIMIZERS, SCHEDULES, AnyExperiment
from deepseek_jax.fields import flatten
from deepseek_jax.models import checks
from deepseek_jax.models.hybrid.config import NEEDED
from deepseek_jax.part_settings import Parts
from deepseek_jax.tasks.config import OBJECTIVES, OF_BOXES, OF_CLASSES

CHOICES = {"optimizer": OPTIMIZERS, "optimizer.schedule": SCHEDULES, "objective": OBJECTIVES}


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
    ("train.ramp_start", 0, _keys("train", "ramp_stages ramp_fraction")),
    ("eval.samples", 0, ("eval.sample_tokens",)),
    ("router.bias_update_rate", 0, ("router.bias_update_until",)),
    ("mesh.stage", 1, _keys("train", "pipeline_microbatches pipeline_rounds")),
    ("mesh.expert", 1, ("router.capacity_factor",)),
    ("model.num_nextn_predict_layers", 0, _keys("loss", "mtp_weight mtp_weight_final mtp_switch")),
    ("model.hc_manifold", False, ("model.hc_sinkhorn_iters",)),
    ("model.hc_mult", 0, _keys("model", "hc_sinkhorn_iters hc_eps hc_manifold")),
    ("dataset.name", "fashion", ("dataset.test",)),  # has a test split of its own
    ("model.recurrent.kind", "none", _keys("model.recurrent", "hidden_size layers bidirectional")),
    ("model.attention.num_heads", 0, _keys("model.attention", "key_dim residual norm")),
    ("model.convolution.pool", "none", ("model.convolution.pool_size",)),
    ("model.convolution.kind", "blocks", _keys("model.convolution", "stages enlarge")),
    ("model.convolution.kind", "efficientnet_lite0", BLOCKS),
    ("model.convolution.filters", (), (*BLOCKS, *_keys("model.convolution", "kind stages enlarge"))),
)
MAGNITUDES = _keys("model.rope_scaling", "mscale mscale_all_dim")
YARN = (*_keys("model.rope_scaling", "original_max_position_embeddings beta_fast beta_slow"), *MAGNITUDES)
NOT_OF_ATTENTION = (  # kinds of attention, and the keys that none of them uses, beside the sizes in checks.OF_ATTENTION
    ({"gqa", "mla", "dsa", "window"}, ("model.compress_rope_theta",)),
    ({"csa", "hca"}, ("model.rope_theta",)),
    (checks.OF_V4, ("model.rope_interleave", *MAGNITUDES)),
    ({"window"}, ("model.rope_scaling.factor", *YARN)),
)
BIASES = _keys("router", "bias_update_rate bias_update_until recentre_bias")
GROUPS = _keys("model", "n_group topk_group")
BY_SCORES = (  # the choice of experts
    *_keys("model", "topk_method masked_top_experts"),
    *GROUPS,
    *_keys("loss", "sequence_balance batch_balance"),
    *BIASES,
)
OF_EXPERTS = (
    *BY_SCORES,
    *_keys("model", "n_routed_experts num_experts_per_tok n_shared_experts scoring_func norm_topk_prob"),
    *("model.routed_scaling_factor", "router.capacity_factor"),
)
FILES = _keys("dataset.images", "height width channels")


def sentences(experiment: AnyExperiment, keys: Collection[str]) -> list[str]:
    """One sentence for each of `keys`, those that a user has set, that has no effect on `experiment`."""
    idle = idle_keys(experiment) if keys else {}  # it imports rooms that not every command needs
    return [f"{key} has no effect: {idle[key]}." for key in keys if key in idle]


def idle_keys(experiment: AnyExperiment) -> dict[str, str]:
    """{key that has no effect: why}.  Not complete: of keys that are not listed, some may have none either."""
    found = {}
    for section, uses in CHOICES.items():
        if (chosen := _value(experiment, f"{section}.name")) in uses:
            unused = set().union(*uses.values()).difference(uses[chosen])
            found |= dict.fromkeys(_keys(section, " ".join(unused)), f"{section}.name is {chosen}")
    if pattern := experiment.prune.pattern:
        found |= dict.fromkeys(_keys("prune", "sparsity scope every"), f"prune.pattern is {pattern}")
    used = vars(experiment.optimizer.parts) | vars(getattr(experiment.model, "parts", Parts()))
    for name, settings in vars(experiment.parts).items():
        if name not in used and any(name in known for known in NAMED):
            keys = flatten(dataclasses.asdict(settings), f"parts.{name}.")
            found |= dict.fromkeys(keys, f"the experiment does not use {name}")
    for switch, off, keys in SWITCHES:
        if _value(experiment, switch) == off:
            found |= dict.fromkeys(keys, f"{switch} is {off or repr(off)}")
    return found | (_of_decoder if experiment.family == "language_model" else _of_hybrid)(experiment)


def _value(experiment, key: str):
    """The value of a dotted key; None if this family has no such key."""
    for name in key.split("."):
        experiment = getattr(experiment, name, None)
    return experiment


def _of_decoder(experiment) -> dict[str, str]:
    from deepseek_jax.data.corpora import CORPORA

    model, data = experiment.model, experiment.data
    kinds, found = sorted(set(model.attention_kinds)), {}
    for sizes, what, chosen in (
        (checks.OF_ATTENTION, "attention", kinds),
        (checks.OF_FEED_FORWARD, "feed-forward", sorted(set(model.feed_forward_kinds))),
    ):
        named, used = (set().union(*(sizes[kind] for kind in some)) for some in (sizes, chosen))
        # Kinds other than gqa use these two, whether they need them or not.
        unused = named - used - (set() if chosen == ["gqa"] else {"q_lora_rank", "qk_rope_head_dim"})
        found |= dict.fromkeys(_keys("model", " ".join(unused)), f"the model's {what} is {' and '.join(chosen)}")
    if "model.index_topk" in found:
        found |= dict.fromkeys(_keys("loss", "indexer_weight indexer_warmup"), "the model has no indexer")
    for some, keys in NOT_OF_ATTENTION:
        if {*kinds} <= some:
            found |= dict.fromkeys(keys, f"the model's attention is {' and '.join(kinds)}")
    if model.rope_scaling.factor == 1:
        found |= dict.fromkeys(YARN, "model.rope_scaling.factor is 1")
    experts = {*filter(checks.has_experts, model.feed_forward_kinds)}
    if not experts:
        found |= dict.fromkeys(OF_EXPERTS, "the model has no routed experts")
    elif experts == {"hash_moe"}:
        found |= dict.fromkeys(BY_SCORES, "the model's feed-forward is hash_moe")
    elif experts <= {"moe", "hash_moe"}:  # a router of one's own may use all of them
        if model.topk_method != "noaux_tc":
            found |= dict.fromkeys(BIASES, f"routers have no bias, as model.topk_method is {model.topk_method}")
        if model.topk_method in checks.WITHOUT_GROUPS:
            found |= dict.fromkeys(GROUPS, f"model.topk_method is {model.topk_method}")
    if model.mlp_layer_types:
        by_number = _keys("model", "first_k_dense_replace num_hash_layers")
        found |= dict.fromkeys(by_number, "model.mlp_layer_types names the feed-forward of every layer")
    if data.source != "mix":
        found["data.weights"] = f"data.source is {data.source}"
    if data.shares.keys() <= CORPORA.keys():
        found["data.text_field"] = "no file or directory of texts is named"
    if data.chat:
        found["data.text_field"] = f"data.chat is {data.chat}"
    return found


def _of_hybrid(experiment) -> dict[str, str]:
    from deepseek_jax.data.sets.registry import SOURCES, input_of

    dataset, objective, text = experiment.dataset, experiment.objective.name, experiment.augment.text
    found = dict.fromkeys(_keys("eval", "samples sample_tokens"), "only language models generate texts")
    if kind := input_of(dataset):
        sizes = {"channels", "height", "width", "vocab_size", "embed_dim", "length"}.difference(NEEDED[kind])
        unused = _keys("model", " ".join(sizes))
        unused += () if kind == "image" else ("model.sequence", *FILES)
        unused += () if kind == "text" else _keys("dataset", "vocab_size length")
        # Series are split by time, not by chance.
        unused += ("dataset.seed",) if kind == "series" else _keys("dataset.series", "window horizon season")
        # A table is a sequence of one step, which pools and readouts leave as it is.
        unused += ("model.readout", *_keys("model.convolution", "pool pool_size")) if kind == "table" else ()
        found |= dict.fromkeys(unused, f"{dataset.name} is of kind {kind}")
    if kind == "text" and objective in OF_CLASSES:
        found["dataset.standardise"] = "neither texts nor classes are numbers"
    if dataset.name in SOURCES:
        unused = FILES if dataset.name == "scenes" else (*FILES, *_keys("dataset.scenes", "count canvas most"))
        found |= dict.fromkeys(unused, f"dataset.name is {dataset.name}")
    elif not dataset.columns.boxes:  # sets that ship refuse all columns
        found["dataset.columns.xywh"] = "dataset.columns.boxes is empty"
    only_others = "model.readout" if objective in OF_BOXES else "augment.image.keep_box"
    found[only_others] = f"objective.name is {objective}"
    in_sequence = experiment.model.recurrent.kind != "none" or experiment.model.attention.num_heads
    if not (in_sequence or experiment.model.convolution.filters):
        found["model.dropout"] = "the model has neither convolution, recurrence nor attention"
    if objective in OF_BOXES and not in_sequence:
        found["model.sequence"] = "the model has neither recurrence nor attention, and boxes are found in its map"
    if not (text.synonyms or text.insert):
        found["augment.text.thesaurus"] = "augment.text.synonyms and augment.text.insert are 0"
    return found
