"""How many layers each parameter is from the output, derived from its path; for decoders and hybrid networks."""

import re
from collections.abc import Mapping

import numpy as np

from deepseek_jax.models.schedule import layers_of

ADAPTERS = "adapters"  # first key in the paths of adapter arrays, kept alongside the model's own (views/lora.py)


def distances(rows: Mapping[str, int | None]) -> dict[str, np.ndarray]:
    """For each path, the array's distance to the output: 0 after the last layer, 1 in the last layer, and so on.

    A stacked array gets one number per layer.  `rows` maps each path to the number of layers that its array holds,
    which are the last ones of its stack (None: all).  In the hybrid network, each convolution block, the recurrence and
    the attention count as layers.
    """
    places = {path: _places(path.removeprefix(f"{ADAPTERS}/"), count) for path, count in rows.items()}
    behind = {place: rank for rank, place in enumerate(sorted(set().union(*places.values()), reverse=True))}
    found = {path: np.array([behind[place] for place in each]) for path, each in places.items()}
    return {path: each if stack_of(path) else each[0] for path, each in found.items()}


def stack_of(path: str) -> str | None:
    """The name of the stack that an array belongs to ("1-3" for layers/1-3/attention/out); None if not stacked."""
    match = re.match(r"layers/([^/]+)/", path.removeprefix(f"{ADAPTERS}/"))
    return match[1] if match else None


def before_layers(path: str) -> bool:
    """Whether an array is used before the first layer: the embedding, or a feature extractor's stem."""
    return path == "embedding" or path.startswith("convolution/stem/")


def _places(path, count) -> list[tuple[int, int]]:
    """Sort keys, ordered from input to output: one for each layer of a stacked array, else a single one."""
    if stack := stack_of(path):
        layers = layers_of(stack)
        return [(1, layer) for layer in layers[-(count or len(layers)) :]]
    if before_layers(path):
        return [(0, 0)]
    if block := re.match(r"convolution/blocks/(\d+)/", path):
        return [(1, int(block[1]))]
    of_hybrid = {"recurrent": 2, "attention": 3}
    return [(of_hybrid.get(path.split("/")[0], 4), 0)]
