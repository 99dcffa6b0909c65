"""Rotary embeddings in a config.json: rope_parameters (Hugging Face) or rope_theta and rope_scaling (DeepSeek)."""

import dataclasses
import math
from typing import Any

from deepseek_jax.errors import UserError
from deepseek_jax.fields import convert
from deepseek_jax.models.config import ModelConfig, RopeScaling

# Keys beside V4's scaling that are no fields of ours, as written; its rotations are never magnified.
OF_V4 = {"attention_factor": 1.0, "partial_rotary_factor": None}

MAGNIFIED = ("deepseek_v2", "deepseek_v3", "deepseek_v32")  # DeepSeek's own code has YaRN's magnitudes only in these


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
    theta, of_v4 = values.get("rope_theta", 10000.0), values.get("model_type") == "deepseek_v4"
    if rope.keys() & {"main", "compress"}:
        return _of_main_and_compress(rope, theta, values)
    if of_v4 and rope.get("rope_theta", theta) != theta:
        raise UserError(
            f"config.json has rope_theta {theta} and {rope['rope_theta']}; programs differ in which, so leave one."
        )
    share = values.get("partial_rotary_factor")
    if not of_v4 and share not in (None, 1.0):
        raise UserError(f"config.json has partial_rotary_factor {share!r}; but for V4, only 1.0 can be read.")
    theta, scaling = _scaling(rope, theta)
    if scaling and values.get("model_type") in MAGNIFIED:
        _check_lone_mscale(rope)
    original = values.get("original_max_position_embeddings")  # transformers prefers it
    if scaling and original not in (None, scaling["original_max_position_embeddings"]):
        raise UserError(
            f"config.json has original_max_position_embeddings {original} and "
            f"{scaling['original_max_position_embeddings']}; programs differ in which they take, so leave one."
        )
    return {"rope_theta": theta, "rope_scaling": scaling}


def _check_lone_mscale(rope):
    mscale = rope.get("mscale")
    if not rope.get("mscale_all_dim") and mscale not in (None, 1.0):
        raise UserError(
            f"config.json gives mscale {mscale!r} without mscale_all_dim, for which transformers takes 1.0 and "
            f"DeepSeek's code {mscale!r}; give 1.0 or both."
        )


def _of_main_and_compress(rope, theta, values):
    """V4's two: those of compressed attention, and those of the rest, whose context is never extended."""
    if not (isinstance(rope.get("main"), dict) and isinstance(rope.get("compress"), dict)):
        raise UserError(f"config.json has rope_parameters {rope}; give an object for main and one for compress.")
    theta, extended = _scaling(rope["main"], theta)
    if extended:
        raise UserError("config.json extends rotary embeddings of main; of V4, only those of compress can be read.")
    factor = rope["compress"].get("attention_factor")
    if factor not in (None, OF_V4["attention_factor"]):
        raise UserError(f"config.json has attention_factor {factor!r}; of V4, only 1.0 can be read.")
    compressed = {key: value for key, value in rope["compress"].items() if key not in OF_V4}
    compress_theta, scaling = _scaling(compressed, None)
    if compress_theta is None:  # for which transformers takes rope_theta, not compress_rope_theta
        raise UserError("config.json has no rope_theta in compress; give it.")
    if scaling and factor is None:  # for which transformers takes YaRN's magnitude
        raise UserError("config.json extends rotary embeddings of compress without attention_factor; give 1.0.")
    for part in ("main", "compress"):
        _check_share(part, rope[part], values)
    return {"rope_theta": theta, "compress_rope_theta": compress_theta, "rope_scaling": scaling}


def _check_share(part, rope, values):
    """UserError if transformers would rotate another share of each head in this part than qk_rope_head_dim."""
    head_dim, width, otherwise = (values.get(key) for key in ("head_dim", "qk_rope_head_dim", "partial_rotary_factor"))
    share = rope.get("partial_rotary_factor", 1.0 if otherwise is None else otherwise)
    share = convert(f"config.json's partial_rotary_factor of {part}", share, float)
    if head_dim and width is not None and int(head_dim * share) != width:
        raise UserError(
            f"config.json has qk_rope_head_dim {width}, but in {part} partial_rotary_factor {share} of head_dim "
            f"{head_dim} is {int(head_dim * share)}; make them agree."
        )


def can_say(scaling: RopeScaling) -> bool:
    """Whether a file can express this scaling: `read` would return it.  Files have both magnitudes or neither."""
    return scaling.factor <= 1 or bool(scaling.mscale if scaling.mscale_all_dim else scaling.mscale == 1)


def write(config: ModelConfig) -> dict[str, Any]:
    """The keys rope_theta and rope_scaling, as DeepSeek writes them."""
    scaling = dict(dataclasses.asdict(config.rope_scaling), type="yarn") if config.rope_scaling.factor > 1 else None
    return {"rope_theta": config.rope_theta, "rope_scaling": scaling}


def share(config: ModelConfig) -> float:
    """partial_rotary_factor: the share of head_dim that rotates, such that transformers, which cuts off, gets it back.

    Of 88 dims, 30 / 88 of them would be 29.999...
    """
    given = config.qk_rope_head_dim / config.head_dim
    exact = int(config.head_dim * given) == config.qk_rope_head_dim
    return given if exact else math.nextafter(given, 1.0)


def write_compressed(config: ModelConfig) -> dict[str, Any]:
    """The key rope_parameters, as Hugging Face writes it for V4."""
    rotated = {"partial_rotary_factor": share(config)}
    main = {"rope_type": "default", "rope_theta": config.rope_theta} | rotated
    compress = {"rope_type": "default", "rope_theta": config.compress_rope_theta} | rotated
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
        what = " with ".join([" and ".join(sorted(kinds)), *sorted(given.keys() - known)])
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
