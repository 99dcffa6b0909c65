"""The optimizer `adafactor`, whose second moments of a matrix are a row and a column (arXiv:1804.04235).

    deepseek-jax train --config configs/v3_tiny.py --workdir runs/adafactor \\
        --config.plugins=experiments.parts.adafactor --config.optimizer.name=adafactor --config.parts.adafactor.clip=2

It has no first moment.  optax.contrib and others have more directions to take in this way.
"""

import dataclasses

import optax

from deepseek_jax.parts import add_optimizer


@dataclasses.dataclass(frozen=True)
class Adafactor:
    decay_rate: float = 0.8  # the second moment of step t decays by 1 - t**-decay_rate
    clip: float = 1.0  # largest root mean square of a parameter's update


def direction(config, steps, axes):
    settings = config.parts.adafactor
    factored = optax.scale_by_factored_rms(decay_rate=settings.decay_rate)
    return optax.chain(factored, optax.clip_by_block_rms(settings.clip))


add_optimizer("adafactor", direction, settings=Adafactor)
