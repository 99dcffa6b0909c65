"""Convolutional feature extraction: 2-D for images, 1-D for series and text.

B batch  I channels in  O channels out; `...` are the spatial dimensions
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from deepseek_jax.models.hybrid.config import ConvolutionConfig
from deepseek_jax.models.hybrid.convolve import convolve
from deepseek_jax.models.hybrid.feature_norms import make_norm
from deepseek_jax.models.hybrid.pooling import pool
from deepseek_jax.models.hybrid.regularisation import drop_path, split_key
from deepseek_jax.models.tree import in_order, weight, zeros

ACTIVATIONS = {
    "relu": jax.nn.relu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
}


class Convolution(nnx.Module):
    """A convolution over `rank` spatial dimensions, stride 1, zero-padded to keep the size."""

    def __init__(self, rank: int, into: int, out: int, kernel_size: int, *, bias: bool, raw: bool, rngs: nnx.Rngs):
        """`raw`: the input is the data itself, whose few channels are not worth sharding."""
        window = (kernel_size,) * rank
        scale = math.sqrt(2 / (into * math.prod(window)))  # keeps the variance through relu (arXiv:1502.01852)
        axes = (None,) * rank + (None if raw else "features_in", "features_out")
        self.kernel = weight(rngs.params(), (*window, into, out), axes, scale)
        self.bias = zeros((out,), ("features_out",)) if bias else None

    def __call__(self, x: Float[Array, "B ... I"]) -> Float[Array, "B ... O"]:
        y = convolve(x, self.kernel)
        return y if self.bias is None else y + self.bias[...].astype(y.dtype)


class ConvolutionBlock(nnx.Module):
    """convs_per_block times convolution, norm and activation, then a pooling layer.

    With `residual` the block's input, projected to its output width if that differs, is added before the last
    activation (arXiv:1512.03385).
    """

    def __init__(self, config: ConvolutionConfig, rank: int, into: int, out: int, *, raw: bool, rngs: nnx.Rngs):
        self.config = config
        make = functools.partial(Convolution, rank, rngs=rngs)
        bias = config.norm == "none"  # a norm adds its own bias
        self.convolutions, self.norms = nnx.Dict(), nnx.Dict()
        for number in map(str, range(config.convs_per_block)):
            first = number == "0"
            channels = into if first else out
            self.convolutions[number] = make(channels, out, config.kernel_size, bias=bias, raw=raw and first)
            self.norms[number] = make_norm(config.norm, out)
        self.shortcut = make(into, out, 1, bias=False, raw=raw) if config.residual and into != out else None

    def __call__(
        self, x: Float[Array, "B ... I"], real: Bool[Array, "B ..."] | None, drop_rate: float, key: PRNGKeyArray | None
    ) -> tuple[Float[Array, "B ... O"], Bool[Array, "B ..."] | None, dict]:
        """Returns (the feature map, which of its positions are real, the batch norms' statistics).

        `real` is false at padding (None: no padding).  `drop_rate` is the drop-path rate of the residual branch.  A
        `key` means training.
        """
        config, activation, statistics = self.config, ACTIVATIONS[self.config.activation], {}
        y = x
        for number, convolution in in_order(self.convolutions):
            y = convolution(_without_padding(y if number == "0" else activation(y), real))
            if self.norms[number] is not None:
                y, seen = self.norms[number](y, real, training=key is not None)
                statistics |= {number: seen} if seen else {}
        if config.residual:
            y = drop_path(y, drop_rate, key) + (x if self.shortcut is None else self.shortcut(x))
        y = activation(y)
        if config.pool != "none":
            y, real = pool(y, real, config.pool, config.pool_size)
        return y, real, {"norms": statistics} if statistics else {}


class FeatureExtractor(nnx.Module):
    """A sequence of convolution blocks."""

    def __init__(self, config: ConvolutionConfig, rank: int, channels: int, *, raw: bool, rngs: nnx.Rngs):
        self.blocks, into = nnx.Dict(), channels
        for number, out in enumerate(config.filters):
            first = number == 0
            self.blocks[str(number)] = ConvolutionBlock(config, rank, into, out, raw=raw and first, rngs=rngs)
            into = out

    def __call__(
        self, x: Float[Array, "B ... I"], real: Bool[Array, "B ..."] | None, drop_rate: float, key: PRNGKeyArray | None
    ) -> tuple[Float[Array, "B ... O"], Bool[Array, "B ..."] | None, dict]:
        """Like a block's call; the statistics are nested as the parameters are."""
        statistics = {}
        for (name, block), block_key in zip(in_order(self.blocks), split_key(key, len(self.blocks)), strict=True):
            with jax.named_scope(f"convolution_{name}"):
                x, real, seen = block(x, real, drop_rate, block_key)
            statistics |= {name: seen} if seen else {}
        return _without_padding(x, real), real, {"blocks": statistics} if statistics else {}


def _without_padding(x, real):
    """x with padding zeroed, so that a convolution sees there what it sees beyond the end of an unpadded sequence."""
    return x if real is None else jnp.where(real[..., None], x, 0)
