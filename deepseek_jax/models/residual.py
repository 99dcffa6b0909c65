"""How a sublayer's output joins what flows past it."""

from collections.abc import Callable

from flax import nnx

from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.mhc import HyperConnection


class PlainResidual(nnx.Module):
    """x + f(x)."""

    def __call__(self, x, f: Callable):
        """(the next x, what f reports); `f` takes x and gives (y, report)."""
        y, report = f(x)
        return x + y, report


def make_residual(config: ModelConfig, *, rngs: nnx.Rngs) -> nnx.Module:
    """Hyper-connections where the model has streams."""
    return HyperConnection(config, rngs=rngs) if config.hc_mult else PlainResidual()
