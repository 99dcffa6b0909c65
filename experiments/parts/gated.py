"""The attention `gated`: grouped-query attention, the output of each head multiplied by a sigmoid of the input.

    deepseek-jax train --config configs/v1_tiny.py --workdir runs/gated \\
        --config.plugins=experiments.parts.gated --config.model.layer_types=gated --config.parts.gated.bias=2

One gate a head, as in "Gated Attention for Large Language Models" (arXiv:2505.06708, section 2.2).
"""

import dataclasses

import jax

from deepseek_jax.models.attention.gqa import GroupedQueryAttention
from deepseek_jax.models.layers import linear
from deepseek_jax.models.tree import weight
from deepseek_jax.parts import add_attention


@dataclasses.dataclass(frozen=True)
class Gate:
    bias: float = 0.0  # added to the input of each gate: 2 begins with gates that are nearly open


class GatedAttention(GroupedQueryAttention):
    def __init__(self, config, kind, *, rngs):
        super().__init__(config, kind, rngs=rngs)
        shape = config.hidden_size, config.num_attention_heads
        self.gate = weight(rngs.params(), shape, ("embed", "heads"), config.initializer_range)

    def _output(self, mixed_BSHd, x_BSD):
        gate_BSH = jax.nn.sigmoid(linear(x_BSD, self.gate) + self.config.parts.gated.bias)
        return super()._output(mixed_BSHd * gate_BSH[..., None], x_BSD)


add_attention("gated", GatedAttention, like="gqa", settings=Gate)
