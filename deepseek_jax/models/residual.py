"""Residual connections around sublayers."""

from collections.abc import Callable

from flax import nnx

from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.mhc import HyperConnection


class PlainResidual(nnx.Module):
    """x + f(x)."""

    def __call__(self, x, f: Callable):
        """Returns (x + y, report), where f(x) -> (y, report)."""
        y, report = f(x)
        return x + y, report


def make_residual(config: ModelConfig, *, rngs: nnx.Rngs) -> nnx.Module:
    """Hyper-connections if the config has several streams (hc_mult), else the plain residual."""
    return HyperConnection(config, rngs=rngs) if config.hc_mult else PlainResidual()
