"""Model FLOPs of a training step, counted from the architecture, and the peak of the hardware.

A multiply-add counts as two operations, and the backward pass as two products for each one of the forward pass.
Counted are the products that the model needs (models/flops.py): each token with the experts that it chose and with the
tokens that it attends to, those before it in its document.  Not counted: the optimizer, and what remat recomputes.
"""

import jax

from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.counts import multiplied
from deepseek_jax.parallel.chips import chip_of


def training_flops(config: ModelConfig, tokens: float, attention: float) -> float:
    """FLOPs, forward and backward, of a step over `tokens`; `attention` is the sum of their `attention_a_token`.

    Counts frozen parts of the model as if they were trained.
    """
    return 6 * (tokens * multiplied(config) + attention)


def peak_flops(device: jax.Device) -> float | None:
    """Peak FLOP/s of a device; None if its kind is unknown (then no utilisation is reported)."""
    chip = chip_of(device.device_kind)
    return chip.peak if chip else None
