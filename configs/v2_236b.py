"""DeepSeek-V2, 236B parameters, pretrained as in section 3.1 of arXiv:2405.04434: 8.1T tokens in rows of 4,096.

    deepseek-jax compile --config configs/v2_236b.py --topology v5p:4x4x8

Compiled for 128 TPU v5p: 64.8 of 95 GiB per chip (19.1 arguments, 45.7 temporaries), in 2 minutes on two busy cores
with JAX_OPTIMIZATION_LEVEL=O1.  For 64 chips `plan` estimates 93 GiB; its estimate for 128 is 10 GiB too low.  A step
of 37.7M tokens takes 133 s if everything else overlaps with matrix products, 313 s if nothing overlaps: a utilisation
of 75% to 32%, at the hardware's peak rates.  Some 2.4 GiB of the temporaries are most likely gaps that the placement of
arrays leaves (docs/pods.md).

The paper's batch grows from 2,304 sequences over the first 225B tokens: --config.train.ramp_start=2304
--config.train.ramp_fraction=0.051 --config.train.steps=219800.
"""

import dataclasses

from configs import v3_671b
from deepseek_jax.models.presets import preset


def get_config():
    config = v3_671b.get_config()
    config.model.update(dataclasses.asdict(preset("v2")))
    config.loss.sequence_balance = 3e-3  # there is no balancing bias; section 3.1.2
    config.model.initializer_range = 0.006
    config.model.rope_scaling.factor = 1.0  # YaRN extends the context only after pretraining; section 3.1.4
    config.train.update(steps=215_000, batch_size=9216, microbatch_size=128)
    config.mesh.update(fsdp=16, expert=8)
    config.checkpoint.every = 10  # half an hour of steps
    config.optimizer.peak_lr = 2.4e-4
    config.optimizer.schedule.name = "multi_step"
    return config
