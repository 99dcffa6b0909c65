"""How far from the output each parameter lies, in layers: told from paths, for every model here."""

import re
from collections.abc import Mapping

import numpy as np

from deepseek_jax.models.schedule import layers_of

ADAPTERS = "adapters"  # first key of the paths to what lies beside the model's own arrays (tune/lora.py)


def distances(rows: Mapping[str, int | None]) -> dict[str, np.ndarray]:
    """By path the layers from an array to the output: 0 for what comes after the last one, 1 for the last, and so on.

    Of an array that layers are stacked in, one number a layer; `rows` says how many it holds, the last ones of its
    stack (None: all).  The hybrid's blocks of convolution, its recurrence and its attention are layers.
    """
    places = {path: _places(path.removeprefix(f"{ADAPTERS}/"), count) for path, count in rows.items()}
    behind = {place: rank for rank, place in enumerate(sorted(set().union(*places.values()), reverse=True))}
    found = {path: np.array([behind[place] for place in each]) for path, each in places.items()}
    return {path: each if stack_of(path) else each[0] for path, each in found.items()}


def stack_of(path: str) -> str | None:
    """The name of the stack that an array belongs to: "1-3" of layers/1-3/attention/out."""
    match = re.match(r"layers/([^/]+)/", path.removeprefix(f"{ADAPTERS}/"))
    return match[1] if match else None


def before_layers(path: str) -> bool:
    """Whether an array is used before the first layer: the embedding, or the stem of a feature extractor."""
    return path == "embedding" or path.startswith("convolution/stem/")


def _places(path, count) -> list[tuple[int, int]]:
    """A place for each row, or one for the whole array; they sort from the input to the output."""
    if stack := stack_of(path):
        layers = layers_of(stack)
        return [(1, layer) for layer in layers[-(count or len(layers)) :]]
    if before_layers(path):
        return [(0, 0)]
    if block := re.match(r"convolution/blocks/(\d+)/", path):
        return [(1, int(block[1]))]
    of_hybrid = {"recurrent": 2, "attention": 3}
    return [(of_hybrid.get(path.split("/")[0], 4), 0)]
