"""The schedule `inverse_sqrt`: after the warm-up the learning rate falls as one over the root of the step.

    deepseek-jax train --config configs/v3_tiny.py --workdir runs/inverse_sqrt \\
        --config.plugins=experiments.parts.inverse_sqrt --config.optimizer.schedule.name=inverse_sqrt \\
        --config.parts.inverse_sqrt.timescale=100

It needs no end, and falls to 0 in the last steps ("Scaling Vision Transformers", arXiv:2106.04560, section 3.5).
"""

import dataclasses

import optax

from deepseek_jax.checking import at_least
from deepseek_jax.parts import add_schedule


@dataclasses.dataclass(frozen=True)
class InverseSqrt:
    timescale: int = 1000  # steps after which the rate is the peak over the root of 2
    cooldown: int = 0  # last steps, in which it falls to 0

    def __post_init__(self):
        at_least("parts.inverse_sqrt", self, 1, "timescale")
        at_least("parts.inverse_sqrt", self, 0, "cooldown")


def shape(schedule, peak, steps):
    settings = schedule.parts.inverse_sqrt

    def falling(step):
        return peak * (1 + step / settings.timescale) ** -0.5

    end = steps - settings.cooldown
    if not settings.cooldown:
        return [falling], []
    return [falling, optax.linear_schedule(falling(end - schedule.warmup_steps), 0.0, settings.cooldown)], [end]


add_schedule("inverse_sqrt", shape, settings=InverseSqrt)
