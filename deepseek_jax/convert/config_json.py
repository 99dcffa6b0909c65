"""Conversion between ModelConfig and a checkpoint's config.json, in Hugging Face's or DeepSeek's spelling."""

import dataclasses
import typing
from typing import Any

from deepseek_jax import plugins
from deepseek_jax.convert import rope_json, v4_json
from deepseek_jax.convert.generations import GENERATIONS, SCHEDULE, generation_of
from deepseek_jax.errors import UserError
from deepseek_jax.fields import build_parts, build_section, convert
from deepseek_jax.models import checks
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.part_settings import SETTINGS

MIXED = "deepseek_jax"  # model_type of models that fit no released one: the file then has all fields of ModelConfig
PLUGINS, PARTS = "plugins", "parts"  # keys of such a file: the modules of parts that the package lacks, their settings

# Keys of which this package supports only one value; another one is refused.
FIXED = {"hidden_act": "silu", "moe_layer_freq": 1}
UNHEARD_OF = {"is_causal": True, "per_layer_config": None}  # transformers obeys them, but no file has them

# Keys that may accompany a model's sizes in a file; `convert` writes TOKENS (beside.py).
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
OTHER_KEYS = {"model_type", "architectures", "dtype", "torch_dtype", "expert_dtype", *FIXED, *TOKENS}
OTHER_KEYS |= {"quantization_config", "transformers_version"}

# Keys that files may leave out, with their defaults; every other key of a generation is required.
OPTIONAL = {
    "attention_bias": False,
    "initializer_range": 0.02,
    "mlp_bias": False,
    "num_nextn_predict_layers": 0,
    "rope_interleave": True,
    "tie_word_embeddings": False,
}

# Models whose files list the feed-forward of every layer; transformers ignores such a list in those of others.
LISTS_FEED_FORWARDS = ("deepseek_v32", "deepseek_v4")

# Keys that may be null, with the value that null means.
NULL_MEANS = {"q_lora_rank": 0, "n_shared_experts": 0, "n_group": 1, "topk_group": 1}

# Other names under which transformers reads some keys; the last only where a model has no such key itself.
ALSO_NAMED = {
    "num_local_experts": "n_routed_experts",
    "num_experts": "n_routed_experts",
    "num_mtp_layers": "num_nextn_predict_layers",
    "intermediate_size": "moe_intermediate_size",
}

# Types of the values, by key; some keys are not fields of ModelConfig, or are JSON objects in files.
HELD = typing.get_type_hints(ModelConfig) | {
    "compress_ratios": tuple[int, ...],
    "compress_rates": dict,
    "partial_rotary_factor": float,
    "quantization_config": dict,
    "rope_parameters": dict,
    "rope_scaling": dict,
}

# Fields that are written although the generation implies them, because other programs read them.
WRITTEN = ("scoring_func", "topk_method", "norm_topk_prob")


def from_json(values: dict[str, Any]) -> ModelConfig:
    """ModelConfig from a config.json; UserError for a missing key or a model that this package cannot compute."""
    model_type = values.get("model_type")
    if model_type == MIXED:
        return _from_fields(values)
    generation = next((each for each in GENERATIONS if each.model_type == model_type), None)
    if generation is None:
        known = ", ".join(each.model_type for each in GENERATIONS)
        raise UserError(f"config.json has model_type {model_type!r}; it must be one of {known}.")
    values = _by_one_name(values, generation)
    _check(values, generation)
    values = {key: value for key, value in values.items() if value is not None or key in NULL_MEANS}
    values = _in_our_terms(values, generation)
    fields = {key: _value(values, key, model_type) for key in generation.keys}
    fields |= {key: tuple(values[key]) for key in ("layer_types", "mlp_layer_types") if key in values}
    if model_type == "deepseek" and fields["num_experts_per_tok"] == 1:
        fields["norm_topk_prob"] = False  # DeepSeek's code leaves a single score alone
    return _built(generation.implied | fields | rope_json.read(values))


def to_json(config: ModelConfig, spelling: str = "huggingface") -> dict[str, Any]:
    """A config.json that `from_json` reads.  `spelling`, "huggingface" or "deepseek", only matters for V4."""
    generation = generation_of(config)
    if generation is None:
        modules, fields = checks.plugins_of(config), dataclasses.asdict(config)
        if not fields[PARTS]:
            del fields[PARTS]
        return {"model_type": MIXED} | ({PLUGINS: modules} if modules else {}) | fields
    values = {key: getattr(config, key) for key in generation.keys}
    values |= {key: None for key in NULL_MEANS if values.get(key) == 0}
    values |= {key: value for key, value in generation.implied.items() if key in WRITTEN}
    feed_forwards = config.feed_forward_kinds[: config.num_hidden_layers]
    leading = {"first_k_dense_replace": "dense", "num_hash_layers": "hash_moe"}
    values |= {key: feed_forwards.count(kind) for key, kind in leading.items() if key in values}
    values.setdefault("num_key_value_heads", config.num_attention_heads)
    values |= rope_json.write(config)
    if generation.model_type == "deepseek_v4":
        values = v4_json.write(values, config, spelling)
    return values | FIXED | {"model_type": generation.model_type, "architectures": [generation.architecture]}


def _by_one_name(values, generation):
    """`values` without ALSO_NAMED; UserError where a file has both names with different values."""
    values = dict(values)
    for other, key in ALSO_NAMED.items():
        if key not in generation.keys or other in generation.keys or values.get(other) is None:
            continue
        given = values.pop(other)
        if values.get(key) not in (None, given):
            raise UserError(
                f"config.json has {key} {values[key]!r} and {other} {given!r}, which mean the same to transformers; "
                "leave one."
            )
        values[key] = given
    return values


def _check(values, generation):
    for key, kind in HELD.items():
        if values.get(key) is not None:
            convert(f"config.json's {key}", values[key], kind)
    if "rope_interleave" in generation.keys and values.get("rope_interleave", True) is None:
        raise UserError("config.json has rope_interleave null, which programs take for true or for false; give one.")
    for key in checks.COUNTED:  # checked before lists of that length are made
        if (values.get(key) or 0) > checks.MOST:
            raise UserError(f"config.json has {key} {values[key]:,}; it must be at most {checks.MOST:,}.")
    implied = {key: value for key, value in generation.implied.items() if key not in generation.disregarded}
    for key, only in (
        FIXED | UNHEARD_OF | {key: value for key, value in implied.items() if key not in SCHEDULE}
    ).items():
        given = values.get(key, only)
        if only != (NULL_MEANS.get(key) if given is None else given):
            raise UserError(f"config.json has {key} {given!r}; of {generation.model_type}, only {only!r} can be read.")
    quantised = values.get("quantization_config")
    if quantised and (quantised.get("quant_method"), quantised.get("weight_block_size")) != ("fp8", [128, 128]):
        raise UserError(
            f"config.json has quantization_config {quantised}; only fp8 in blocks of 128 x 128 can be read."
        )


def _in_our_terms(values, generation):
    """`values` with the kinds of layers, and whatever files leave implicit, under the names of ModelConfig's fields."""
    if "gqa" in generation.attentions:
        heads, width = values.get("num_attention_heads"), values.get("hidden_size")
        if not (heads and width):
            raise UserError(f"config.json has num_attention_heads {heads} and hidden_size {width}; give numbers.")
        values = {"num_key_value_heads": heads, "head_dim": width // heads} | values
    if generation.model_type == "deepseek_v4":
        values = v4_json.read(values)
    else:
        values = {key: value for key, value in values.items() if key != "layer_types"}  # implied
    return _counted(_within_depth(values), generation)


def _within_depth(values):
    """`values` in which no more leading layers are of a kind than there are layers.

    A small model that transformers made often keeps V3's 3 dense layers, or V4's 3 hash_moe ones, beside 2 layers.
    """
    depth, counts = values.get("num_hidden_layers"), ("first_k_dense_replace", "num_hash_layers")
    return values | {key: min(values[key], depth) for key in counts if depth and values.get(key) is not None}


def _counted(values, generation):
    """`values` with `mlp_layer_types` replaced by counts of leading layers, where these determine it."""
    kinds = ["moe" if kind == "sparse" else kind for kind in values.get("mlp_layer_types") or ()]
    if not kinds:
        return values
    if len(kinds) != values.get("num_hidden_layers"):
        raise UserError(f"config.json has mlp_layer_types of {len(kinds)} layers; num_hidden_layers says otherwise.")
    dense, hashed = kinds.count("dense"), kinds.count("hash_moe")
    leading = values.get("first_k_dense_replace", dense)
    if generation.model_type not in LISTS_FEED_FORWARDS and kinds != _first_dense(leading, len(kinds)):
        raise UserError(
            f"config.json has mlp_layer_types that is not first_k_dense_replace {leading}, the key that programs read "
            f"of {generation.model_type}; leave that."
        )
    values = values | {"first_k_dense_replace": dense, "num_hash_layers": hashed, "mlp_layer_types": kinds}
    if kinds == ["dense"] * dense + ["hash_moe"] * hashed + ["moe"] * kinds.count("moe"):
        del values["mlp_layer_types"]
    return values


def _first_dense(leading, layers):
    return ["dense" if index < leading else "moe" for index in range(layers)]


def _value(values, key, model_type):
    absent = key in values and values[key] is None
    meanings = OPTIONAL | NULL_MEANS if absent else OPTIONAL | values
    if key not in meanings:
        raise UserError(f"config.json has no {key}; a checkpoint of {model_type} must have it.")
    return meanings.get(key)


def _from_fields(values):
    known = ModelConfig.__dataclass_fields__
    plugins.load(convert(f"config.json's {PLUGINS}", values.get(PLUGINS, ()), tuple[str, ...]), "config.json")
    if unknown := sorted(values.keys() - known.keys() - OTHER_KEYS - {PLUGINS}):
        raise UserError(
            f"config.json has {unknown[0]} {values[unknown[0]]!r}, which is not a field of ModelConfig; remove it, or "
            "add that field."
        )
    fields = {key: value for key, value in values.items() if key in known}
    return _built(fields | {PARTS: build_parts(values.get(PARTS, {}), SETTINGS, "config.json")})


def _built(fields):
    """ModelConfig from values of unchecked types; raises UserError."""
    return build_section(ModelConfig, fields, "config.json's ")
