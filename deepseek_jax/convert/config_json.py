"""The config.json of a released checkpoint, in Hugging Face's spelling and in DeepSeek's, and ours."""

import dataclasses
from typing import Any

from deepseek_jax.errors import UserError
from deepseek_jax.models.config import ModelConfig, RopeScaling

# What we compute whatever these keys say; another value is another model.
FIXED = {
    "model_type": "deepseek_v3",
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "hidden_act": "silu",
    "moe_layer_freq": 1,
    "quantization_config": None,
}

# Keys that files may leave out, with the value this means; all other fields of ModelConfig must be there.
OPTIONAL = {
    "attention_bias": False,
    "initializer_range": 0.02,
    "num_nextn_predict_layers": 0,
    "rope_interleave": True,
    "tie_word_embeddings": False,
}

# Fields of other generations, which keep their defaults.
OF_OTHERS = (
    "layer_types mlp_layer_types num_hash_layers num_key_value_heads head_dim index_n_heads index_head_dim index_topk "
    "sliding_window csa_rate hca_rate o_groups o_lora_rank compress_rope_theta mlp_bias swiglu_limit scoring_func "
    "topk_method hc_mult hc_sinkhorn_iters hc_eps"
).split()

NULL_MEANS_ZERO = ("q_lora_rank", "n_shared_experts")


def from_json(values: dict[str, Any]) -> ModelConfig:
    """ModelConfig from a config.json; raises UserError on a missing key and on what this package does not compute."""
    for key, only in FIXED.items():
        if values.get(key, only) != only:
            raise UserError(f"config.json has {key} {values[key]!r}; only {only!r} can be read.")
    theta, scaling = _rope(values)
    fields = {"rope_theta": theta, "rope_scaling": scaling}
    for field in dataclasses.fields(ModelConfig):
        if field.name not in fields and field.name not in OF_OTHERS:
            fields[field.name] = _value(values, field.name)
    return ModelConfig(**fields)


def to_json(config: ModelConfig) -> dict[str, Any]:
    """A config.json in DeepSeek's spelling, which Hugging Face reads too."""
    values = {name: value for name, value in dataclasses.asdict(config).items() if name not in OF_OTHERS} | FIXED
    del values["quantization_config"]
    values |= {key: None for key in NULL_MEANS_ZERO if not values[key]}
    values["rope_scaling"] = dict(values["rope_scaling"], type="yarn") if config.rope_scaling.factor > 1 else None
    return values | {
        "architectures": ["DeepseekV3ForCausalLM"],
        "num_key_value_heads": config.num_attention_heads,
        "torch_dtype": "float32",
    }


def _value(values, name):
    if name not in values and name not in OPTIONAL:
        raise UserError(f"config.json has no {name}; a DeepSeek-V3 checkpoint must say it.")
    value = values.get(name, OPTIONAL.get(name))
    return 0 if value is None and name in NULL_MEANS_ZERO else value


def _rope(values):
    """(theta, scaling) from `rope_parameters` (Hugging Face) or `rope_theta` and `rope_scaling` (DeepSeek)."""
    rope = dict(values.get("rope_parameters") or values.get("rope_scaling") or {})
    theta = rope.pop("rope_theta", values.get("rope_theta", 10000.0))
    kinds = {rope.pop("rope_type", None), rope.pop("type", None)} - {None}
    if kinds <= {"default"}:
        return theta, RopeScaling()
    known = {field.name for field in dataclasses.fields(RopeScaling)}
    if kinds != {"yarn"} or not rope.keys() <= known:
        given = ", ".join([*kinds, *rope])
        raise UserError(
            f"config.json extends rotary embeddings by {given}; only yarn with {sorted(known)} can be read."
        )
    return theta, RopeScaling(**rope | _magnitudes(rope.get("mscale"), rope.get("mscale_all_dim")))


def _magnitudes(mscale, mscale_all_dim):
    """Where only one of the two is given, Hugging Face scales the rotated dimensions as if `mscale` were 1."""
    if mscale_all_dim and not mscale:
        raise UserError("config.json gives mscale_all_dim without mscale; give both.")
    return {"mscale": mscale if mscale_all_dim else 1.0, "mscale_all_dim": mscale_all_dim or 0.0}
