"""DeepSeek-V2, 236B parameters, as released (arXiv:2405.04434), with its batch of 9,216 sequences of 4,096 tokens.

    deepseek-jax compile --config configs/v2_236b.py --topology v5p:4x4x8

Compiled for 128 TPU v5p: 62.0 of 95 GiB a chip (19.1 arguments, 43.0 temporaries), in 3 minutes on two busy cores with
JAX_OPTIMIZATION_LEVEL=O1.  On half as many `plan` counts 93 GiB, and it counts 7 too few here.  A step of 37.7M tokens
takes between 133 s, if all else hides behind products, and 314 s, if nothing does: a utilisation of 75% to 32%, by
peaks alone.
"""

import dataclasses

from configs import v3_671b
from deepseek_jax.models.presets import preset


def get_config():
    config = v3_671b.get_config()
    config.model.update(dataclasses.asdict(preset("v2")))
    config.loss.sequence_balance = 3e-3  # no bias balances the loads here; section 3.1.2
    config.train.update(steps=215_000, batch_size=9216, microbatch_size=128)
    config.mesh.update(fsdp=16, expert=8)
    config.checkpoint.every = 10  # half an hour of steps
    config.optimizer.peak_lr = 2.4e-4
    config.optimizer.schedule.name = "multi_step"
    return config
