"""V4's config.json in DeepSeek's spelling (compress_ratios) or Hugging Face's (layer_types, compress_rates), and ours.

A layer's ratio is 0 for window attention, otherwise the number of tokens in a block: 4 for csa, any other for hca.
"""

from typing import Any

from deepseek_jax.convert import rope_json
from deepseek_jax.errors import UserError
from deepseek_jax.models.config import ModelConfig

CSA_RATE = 4  # in DeepSeek's files, only this ratio distinguishes csa from hca
KINDS = {
    "sliding_attention": "window",
    "compressed_sparse_attention": "csa",
    "heavily_compressed_attention": "hca",
}


def read(values: dict[str, Any]) -> dict[str, Any]:
    """`values`, in either spelling, with the layer schedule added under the names of ModelConfig's fields."""
    schedule = _from_ratios(values) if values.get("compress_ratios") else _from_types(values)
    return values | schedule | {"qk_rope_head_dim": _rope_head_dim(values)}


def write(values: dict[str, Any], config: ModelConfig, spelling: str) -> dict[str, Any]:
    """`values`, by names of ModelConfig's fields, converted to `spelling`."""
    values = {key: value for key, value in values.items() if key not in ("csa_rate", "hca_rate")}
    values["num_key_value_heads"] = 1
    if spelling == "deepseek":
        return values | {"compress_ratios": _ratios(config)}
    names = {ours: theirs for theirs, ours in KINDS.items()}
    layers = {
        "layer_types": [names[kind] for kind in config.attention_kinds],  # Hugging Face drops those of MTP modules
        "mlp_layer_types": list(config.feed_forward_kinds[: config.num_hidden_layers]),
        "compress_rates": {names["csa"]: config.csa_rate, names["hca"]: config.hca_rate},
        "partial_rotary_factor": config.qk_rope_head_dim / config.head_dim,
    }
    others = {key: value for key, value in values.items() if key not in ("num_hash_layers", "rope_scaling")}
    return others | layers | rope_json.write_compressed(config)


def _from_ratios(values):
    ratios = values["compress_ratios"]
    others = sorted(set(ratios) - {0, CSA_RATE})
    if len(others) > 1:
        raise UserError(
            f"config.json has compress_ratios {' and '.join(map(str, others))}; beside 0 and {CSA_RATE}, only one "
            "other can be read."
        )
    kinds = {0: "window", CSA_RATE: "csa"} | dict.fromkeys(others, "hca")
    rates = {"csa_rate": CSA_RATE, "hca_rate": others[0] if others else ModelConfig.hca_rate}
    return {"layer_types": _with_mtp([kinds[ratio] for ratio in ratios], values)} | rates


def _from_types(values):
    missing = {"layer_types", "compress_rates"} - values.keys()
    if missing:
        raise UserError(f"config.json has no compress_ratios and no {min(missing)}; a V4 checkpoint must have it.")
    unknown = set(values["layer_types"]) - KINDS.keys()
    if unknown:
        raise UserError(f"config.json has a layer of type {min(unknown)}; V4 has {', '.join(KINDS)}.")
    rates = {KINDS.get(name): rate for name, rate in values["compress_rates"].items()}
    if not {"csa", "hca"} <= rates.keys():
        raise UserError("config.json has compress_rates without those of both compressed attentions; give both.")
    return {
        "layer_types": _with_mtp([KINDS[kind] for kind in values["layer_types"]], values),
        "csa_rate": rates["csa"],
        "hca_rate": rates["hca"],
    }


def _with_mtp(kinds, values):
    """`kinds` completed for MTP modules: if the list of layers leaves them out, they use window attention."""
    total = (values.get("num_hidden_layers") or 0) + (values.get("num_nextn_predict_layers") or 0)
    return kinds + ["window"] * (total - len(kinds))


def _rope_head_dim(values):
    """qk_rope_head_dim; newer Hugging Face files only give it as a share of head_dim.  None if neither is given."""
    said, head_dim, share = (values.get(key) for key in ("qk_rope_head_dim", "head_dim", "partial_rotary_factor"))
    return round(head_dim * share) if said is None and head_dim and share is not None else said


def _ratios(config):
    kinds = config.attention_kinds
    if ("csa" in kinds and config.csa_rate != CSA_RATE) or ("hca" in kinds and config.hca_rate == CSA_RATE):
        raise UserError(
            f"DeepSeek's config.json takes layers with {CSA_RATE} tokens in a block for csa and all others for hca; "
            f"it cannot say csa_rate {config.csa_rate} and hca_rate {config.hca_rate}: write Hugging Face's spelling."
        )
    ratio = {"window": 0, "csa": config.csa_rate, "hca": config.hca_rate}
    return [ratio[kind] for kind in kinds]
