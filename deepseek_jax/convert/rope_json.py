"""Rotary embeddings in a config.json: rope_parameters (Hugging Face) or rope_theta and rope_scaling (DeepSeek)."""

import dataclasses
from typing import Any

from deepseek_jax.errors import UserError
from deepseek_jax.models.config import ModelConfig, RopeScaling

# Keys beside V4's scaling that are no fields of ours, as written; its rotations are never magnified.
OF_V4 = {"attention_factor": 1.0, "partial_rotary_factor": None}


def read(values: dict[str, Any]) -> dict[str, Any]:
    """The rotary fields of ModelConfig, from the contents of a config.json.

    If a file has both spellings, programs differ in which one they use, so both must say the same.
    """
    given = [values[key] for key in ("rope_parameters", "rope_scaling") if values.get(key)]
    first, *second = [_fields(rope, values) for rope in given or [{}]]
    if second and second != [first]:
        raise UserError("config.json has rope_parameters and rope_scaling that say different things; leave one.")
    return first


def _fields(rope, values):
    if rope.keys() & {"main", "compress"}:  # V4: compressed attention, and the rest, whose context is never extended
        if not (isinstance(rope.get("main"), dict) and isinstance(rope.get("compress"), dict)):
            raise UserError(f"config.json has rope_parameters {rope}; give an object for main and one for compress.")
        theta, extended = _scaling(rope["main"], 10000.0)
        if extended:
            raise UserError("config.json extends rotary embeddings of main; of V4, only those of compress can be read.")
        factor = rope["compress"].get("attention_factor")
        if factor not in (None, OF_V4["attention_factor"]):
            raise UserError(f"config.json has attention_factor {factor!r}; of V4, only 1.0 can be read.")
        compressed = {key: value for key, value in rope["compress"].items() if key not in OF_V4}
        compress_theta, scaling = _scaling(compressed, values.get("compress_rope_theta"))
        return {"rope_theta": theta, "compress_rope_theta": compress_theta, "rope_scaling": scaling}
    theta, scaling = _scaling(rope, values.get("rope_theta", 10000.0))
    return {"rope_theta": theta, "rope_scaling": scaling}


def can_say(scaling: RopeScaling) -> bool:
    """Whether a file can express this scaling: `read` would return it.  Files have both magnitudes or neither."""
    return scaling.factor <= 1 or bool(scaling.mscale if scaling.mscale_all_dim else scaling.mscale == 1)


def write(config: ModelConfig) -> dict[str, Any]:
    """The keys rope_theta and rope_scaling, as DeepSeek writes them."""
    scaling = dict(dataclasses.asdict(config.rope_scaling), type="yarn") if config.rope_scaling.factor > 1 else None
    return {"rope_theta": config.rope_theta, "rope_scaling": scaling}


def write_compressed(config: ModelConfig) -> dict[str, Any]:
    """The key rope_parameters, as Hugging Face writes it for V4."""
    share = {"partial_rotary_factor": config.qk_rope_head_dim / config.head_dim}
    main = {"rope_type": "default", "rope_theta": config.rope_theta} | share
    compress = {"rope_type": "default", "rope_theta": config.compress_rope_theta} | share
    if config.rope_scaling.factor > 1:
        compress |= dataclasses.asdict(config.rope_scaling) | {"rope_type": "yarn", "attention_factor": 1.0}
    return {"rope_parameters": {"main": main, "compress": compress}}


def _scaling(rope, theta):
    """(theta, the fields of RopeScaling as a dict: empty if the context is not extended)."""
    theta = rope.get("rope_theta", theta)
    kinds = {str(rope[key]) for key in ("rope_type", "type") if key in rope}
    if not kinds and "factor" in rope:
        raise UserError(f"config.json extends rotary embeddings by {rope['factor']!r}, but has no rope_type; give it.")
    if kinds <= {"default"}:
        return theta, {}
    known = {field.name for field in dataclasses.fields(RopeScaling)}
    given = {key: value for key, value in rope.items() if key not in ("rope_theta", "rope_type", "type")}
    if kinds != {"yarn"} or not given.keys() <= known:
        what = ", ".join([*kinds, *given])
        raise UserError(f"config.json extends rotary embeddings by {what}; only yarn with {sorted(known)} can be read.")
    for key in ("factor", "original_max_position_embeddings"):  # without the second, programs assume different defaults
        if key not in given:
            raise UserError(f"config.json extends rotary embeddings by yarn without {key}; give it.")
    return theta, given | _magnitudes(given.get("mscale"), given.get("mscale_all_dim"))


def _magnitudes(mscale, mscale_all_dim):
    """The two magnitudes as RopeScaling has them.  If only mscale is given, Hugging Face computes as if it were 1."""
    if mscale_all_dim and not mscale:
        raise UserError("config.json gives mscale_all_dim without mscale; give both.")
    return {"mscale": mscale if mscale_all_dim else 1.0, "mscale_all_dim": mscale_all_dim or 0.0}
