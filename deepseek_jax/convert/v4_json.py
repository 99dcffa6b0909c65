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
COMPRESSING = ("csa", "hca")


def read(values: dict[str, Any]) -> dict[str, Any]:
    """`values`, in either spelling, with the layer schedule added under the names of ModelConfig's fields."""
    if values.get("swiglu_limit") == 0:
        raise UserError("config.json has swiglu_limit 0, to which transformers would clamp all; it must be above 0.")
    schedule = _schedule(values)
    for name in ("compress_rates", "layer_types"):
        if name not in schedule:
            raise UserError(f"config.json has no compress_ratios and no {name}; a V4 checkpoint must have it.")
    rates = {kind: getattr(ModelConfig, f"{kind}_rate") for kind in COMPRESSING} | schedule["compress_rates"][1]
    rates = {f"{kind}_rate": rate for kind, rate in rates.items()}
    kinds = _of_depth(*schedule["layer_types"], values)
    return values | rates | {"layer_types": kinds, "qk_rope_head_dim": _rope_head_dim(values)}


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
        "partial_rotary_factor": rope_json.share(config),
    }
    others = {key: value for key, value in values.items() if key not in ("num_hash_layers", "rope_scaling")}
    return others | layers | rope_json.write_compressed(config)


def _schedule(values):
    """{"layer_types": (the key that says it, kinds), "compress_rates": (the key that says it, rates by kind)}.

    A file may say the same by several keys.  Programs differ in which one they follow, so all must agree.
    """
    schedule = {}
    for key, says in (("compress_ratios", _from_ratios), ("layer_types", _from_types), ("compress_rates", _from_rates)):
        for name, said in says(values[key]).items() if values.get(key) else ():
            first, known = schedule.setdefault(name, (key, said))
            if not _agree(known, said):
                raise UserError(f"config.json has {first} and {key} that say different things; leave one.")
    for kind in COMPRESSING:  # older files; transformers lets these decide
        rate = values.get(f"compress_rate_{kind}")
        if rate is not None and rate != schedule.get("compress_rates", (None, {}))[1].get(kind):
            raise UserError(f"config.json has compress_rate_{kind} {rate}; give it in compress_rates instead.")
    return schedule


def _agree(one, other):
    """Whether two lists of kinds, of which one may go on to the MTP modules, or two tables of rates say the same."""
    if isinstance(one, list):
        return all(kind == same for kind, same in zip(one, other, strict=False))
    return all(one[kind] == other[kind] for kind in one.keys() & other.keys())


def _from_ratios(ratios):
    others = sorted(set(ratios) - {0, CSA_RATE})
    if len(others) > 1:
        raise UserError(
            f"config.json has compress_ratios {' and '.join(map(str, others))}; beside 0 and {CSA_RATE}, only one "
            "other can be read."
        )
    kinds = {0: "window", CSA_RATE: "csa"} | dict.fromkeys(others, "hca")
    rates = {kind: rate for rate, kind in kinds.items() if rate in ratios and rate}
    return {"layer_types": [kinds[ratio] for ratio in ratios], "compress_rates": rates}


def _from_types(types):
    unknown = set(types) - KINDS.keys()
    if unknown:
        raise UserError(f"config.json has a layer of type {min(unknown)}; V4 has {', '.join(KINDS)}.")
    return {"layer_types": [KINDS[kind] for kind in types]}


def _from_rates(given):
    rates = {KINDS.get(name): rate for name, rate in given.items()}
    if not rates.keys() >= set(COMPRESSING):
        raise UserError("config.json has compress_rates without those of both compressed attentions; give both.")
    return {"compress_rates": {kind: rates[kind] for kind in COMPRESSING}}


def _of_depth(key, kinds, values):
    """`kinds` of all layers, then of all MTP modules: these use window attention where the list leaves them out.

    The list may go on to modules that are left out, as Hugging Face's lists may.
    """
    depth, modules = (values.get(name) or 0 for name in ("num_hidden_layers", "num_nextn_predict_layers"))
    if len(kinds) < depth:
        raise UserError(f"config.json has {key} of {len(kinds)} layers; num_hidden_layers says otherwise.")
    return (kinds + ["window"] * modules)[: depth + modules]


def _rope_head_dim(values):
    """qk_rope_head_dim; newer Hugging Face files only give it as a share of head_dim.  None if neither is given.

    If a file gives both, transformers follows the share and DeepSeek's code does not, so they must agree.
    """
    said, head_dim, share = (values.get(key) for key in ("qk_rope_head_dim", "head_dim", "partial_rotary_factor"))
    if not head_dim or share is None:
        return said
    width = int(head_dim * share)
    if said not in (None, width):
        raise UserError(
            f"config.json has qk_rope_head_dim {said}, but partial_rotary_factor {share} of head_dim {head_dim} is "
            f"{width}; leave one."
        )
    return width


def _ratios(config):
    kinds = config.attention_kinds
    if ("csa" in kinds and config.csa_rate != CSA_RATE) or ("hca" in kinds and config.hca_rate == CSA_RATE):
        raise UserError(
            f"DeepSeek's config.json takes layers with {CSA_RATE} tokens in a block for csa and all others for hca; "
            f"it cannot say csa_rate {config.csa_rate} and hca_rate {config.hca_rate}: write Hugging Face's spelling."
        )
    ratio = {"window": 0, "csa": config.csa_rate, "hca": config.hca_rate}
    return [ratio[kind] for kind in kinds]
