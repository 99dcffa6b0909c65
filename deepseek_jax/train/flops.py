"""Model FLOPs of a training step, counted from the architecture, and what the hardware could do.

Two operations a multiply-add, and a backward pass of two products for each one forward.  Counted are the products that
the model needs (models/flops.py): a token with the experts it chose and with the tokens it sees, which are those before
it in its document.  Not counted: the optimizer, and what remat computes again.
"""

import jax

from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.counts import multiplied
from deepseek_jax.parallel.chips import chip_of


def training_flops(config: ModelConfig, tokens: float, attention: float) -> float:
    """Of a step over this many tokens, with `attention` the sum of their `attention_a_token`, forward and backward.

    As if all of the model were trained, also where a part of it is frozen.
    """
    return 6 * (tokens * multiplied(config) + attention)


def peak_flops(device: jax.Device) -> float | None:
    """FLOP/s of a device at its best, None where the kind is not known (then there is no utilisation to report)."""
    chip = chip_of(device.device_kind)
    return chip.peak if chip else None
