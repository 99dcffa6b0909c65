"""What studies measure of trained runs, besides their losses: functions Trained -> {score: number}.

An attribute `gives` names the scores.  It is set outside the function, as stored results depend on a function's source.
"""

from deepseek_jax.studies.measures.decoding import acceptance, cache_bytes, decode_speed
from deepseek_jax.studies.measures.learning import step_memory, tokens_to
from deepseek_jax.studies.measures.residual import composite_gain
from deepseek_jax.studies.measures.routing import mask_top, shared_for_routed, specialisation

__all__ = [
    "acceptance",
    "cache_bytes",
    "composite_gain",
    "decode_speed",
    "mask_top",
    "shared_for_routed",
    "specialisation",
    "step_memory",
    "tokens_to",
]
