"""EfficientNet-Lite0 as a feature extractor: inverted bottlenecks without squeeze and excitation (arXiv:1905.11946).

Matches the published ImageNet weights (convert/efficientnet.py): relu6, batch norms with eps 1e-3, and TensorFlow's
"SAME" zero padding, which puts the extra zero at the end where the total is odd.

B batch  I channels in  O channels out  H W image  h w feature map
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from deepseek_jax.models.hybrid.convolve import convolve
from deepseek_jax.models.hybrid.feature_norms import BatchNorm
from deepseek_jax.models.tree import in_order, weight

EPS = 1e-3
STEM = 32  # channels after the first convolution


@dataclasses.dataclass(frozen=True)
class Stage:
    """`repeats` bottleneck blocks with `channels` output channels; only the first has the stride."""

    repeats: int
    kernel_size: int
    stride: int
    expansion: int
    channels: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


def reduction(stages: int) -> int:
    """The factor by which the stem and the first `stages` stages reduce height and width."""
    return 2 * math.prod(stage.stride for stage in STAGES[:stages])


class NormedConvolution(nnx.Module):
    """Convolution followed by batch norm; `depthwise`: one filter per channel."""

    def __init__(self, into: int, out: int, kernel_size: int, stride: int, *, depthwise: bool, rngs: nnx.Rngs):
        self.stride, self.groups = stride, into if depthwise else 1
        inputs = into // self.groups
        axes = (None, None, "features_in" if inputs > 3 else None, "features_out")  # 1 or 3: too few to shard
        scale = math.sqrt(2 / (kernel_size**2 * (1 if depthwise else into)))
        self.kernel = weight(rngs.params(), (kernel_size, kernel_size, inputs, out), axes, scale)
        self.norm = BatchNorm(out, EPS)

    def __call__(self, x: Float[Array, "B H W I"], training: bool) -> tuple[Float[Array, "B h w O"], dict]:
        y, seen = self.norm(convolve(x, self.kernel, self.stride, self.groups), None, training)
        return y, {"norm": seen} if seen else {}


class Bottleneck(nnx.Module):
    """Inverted bottleneck: 1x1 expansion, depthwise convolution, 1x1 projection; residual if the shape is unchanged."""

    def __init__(self, stage: Stage, into: int, stride: int, *, rngs: nnx.Rngs):
        wide = into * stage.expansion
        self.adds = stride == 1 and into == stage.channels
        self.parts = nnx.Dict()
        if stage.expansion > 1:
            self.parts["expand"] = NormedConvolution(into, wide, 1, 1, depthwise=False, rngs=rngs)
        self.parts["depthwise"] = NormedConvolution(wide, wide, stage.kernel_size, stride, depthwise=True, rngs=rngs)
        self.parts["project"] = NormedConvolution(wide, stage.channels, 1, 1, depthwise=False, rngs=rngs)

    def __call__(self, x: Float[Array, "B H W I"], training: bool) -> tuple[Float[Array, "B h w O"], dict]:
        y, statistics = x, {}
        for name in ("expand", "depthwise", "project"):
            if name in self.parts:
                y, seen = self.parts[name](y, training)
                y = y if name == "project" else relu6(y)
                statistics |= {name: seen} if seen else {}
        return (x + y if self.adds else y), {"parts": statistics} if statistics else {}


class EfficientNetLite(nnx.Module):
    """The stem and the first `stages` stages.  Image values are from 0 to 1; a single channel is repeated to three.

    Images are first enlarged by the factor `enlarge`: those of ImageNet have 224 x 224 pixels.
    """

    def __init__(self, stages: int, enlarge: int, *, rngs: nnx.Rngs):
        self.enlarge = enlarge
        self.stem = NormedConvolution(3, STEM, 3, 2, depthwise=False, rngs=rngs)
        self.blocks, into = nnx.Dict(), STEM
        for stage in STAGES[:stages]:
            for repeat in range(stage.repeats):
                stride = stage.stride if repeat == 0 else 1
                self.blocks[str(len(self.blocks))] = Bottleneck(stage, into, stride, rngs=rngs)
                into = stage.channels

    def __call__(self, x: Float[Array, "B H W C"], training: bool) -> tuple[Float[Array, "B h w O"], dict]:
        """Returns (the feature map, the batch norms' statistics in training, nested as the parameters are)."""
        B, H, W, C = x.shape
        x = jnp.broadcast_to(x, (B, H, W, 3)) if C == 1 else x
        if self.enlarge > 1:
            x = jax.image.resize(x, (B, H * self.enlarge, W * self.enlarge, 3), "bilinear")
        with jax.named_scope("stem"):
            x, seen = self.stem((255 * x - 127) / 128, training)
        x, statistics, blocks = relu6(x), {"stem": seen} if seen else {}, {}
        for name, block in in_order(self.blocks):
            with jax.named_scope(f"bottleneck_{name}"):
                x, seen = block(x, training)
            blocks |= {name: seen} if seen else {}
        return x, statistics | ({"blocks": blocks} if blocks else {})


def relu6(x):
    return jnp.clip(x, 0, 6)
