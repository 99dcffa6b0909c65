"""The cost of generation: size of the cache, decoding speed, and what MTP modules' drafts save."""

import time

from deepseek_jax.infer import generate, speculative
from deepseek_jax.models.counts import cache_size
from deepseek_jax.studies.measures import text
from deepseek_jax.train.checkpoints.restore import Trained

PROMPTS, PROMPT, NEW = 4, 32, 64  # number of prompts, tokens of each, new tokens after each
REPEATS = 3


def cache_bytes(trained: Trained) -> dict[str, float]:
    """Bytes by which the main model's float32 cache grows per token, computed by formula; the same for every seed."""
    growing, _ = cache_size(trained.experiment.model)
    return {"cache_bytes": 4 * growing}


cache_bytes.gives = ("cache_bytes",)


def decode_speed(trained: Trained) -> dict[str, float]:
    """Tokens per second of greedy decoding of a batch; the best of REPEATS, with prefill, without compilation."""
    given = text.prompts(trained, PROMPTS, PROMPT)
    return {"decode_tokens_per_second": PROMPTS * NEW / _seconds(generate.new_tokens, trained, given)}


decode_speed.gives = ("decode_tokens_per_second",)


def acceptance(trained: Trained) -> dict[str, float]:
    """Greedy decoding with drafts: the share of them accepted, and how many times faster it is; {} without MTP."""
    if not trained.experiment.model.num_nextn_predict_layers:
        return {}
    given = text.prompts(trained, PROMPTS, PROMPT)
    _, found = speculative.new_tokens(trained.model, given, NEW)
    plain, drafted = (_seconds(way.new_tokens, trained, given) for way in (generate, speculative))
    return {"acceptance": found.rate, "decode_speed_up": plain / drafted}


acceptance.gives = ("acceptance", "decode_speed_up")


def _seconds(decode, trained: Trained, given: list[list[int]]) -> float:
    decode(trained.model, given, NEW)  # compiles
    taken = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        decode(trained.model, given, NEW)
        taken.append(time.perf_counter() - began)
    return min(taken)
