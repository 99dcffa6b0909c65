"""Model FLOPs of a training step, counted from the architecture, and what the hardware could do.

Two operations a multiply-add, and a backward pass of two products for each one forward.  Counted are the products that
the model needs (models/flops.py): a token with the experts it chose and with the tokens it sees, which are those before
it in its document.  Not counted: the optimizer, and what remat computes again.
"""

import jax

from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.counts import multiplied

# Dense bfloat16 peak of one device as JAX counts devices, FLOP/s, from the vendors' data sheets; matched as a prefix of
# device_kind, longest first.
PEAKS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}


def training_flops(config: ModelConfig, tokens: float, attention: float) -> float:
    """Of a step over this many tokens, with `attention` the sum of their `attention_a_token`, forward and backward."""
    return 6 * (tokens * multiplied(config) + attention)


def peak_flops(device: jax.Device) -> float | None:
    """FLOP/s of a device at its best, None where the kind is not known (then there is no utilisation to report)."""
    for kind in sorted(PEAKS, key=len, reverse=True):
        if device.device_kind.startswith(kind):
            return PEAKS[kind]
    return None
