"""DeepSeek-V3, 671B parameters, as released (arXiv:2412.19437), with its batch of 15,360 sequences of 4,096 tokens.

    deepseek-jax compile --config configs/v3_671b.py --topology v5p:8x8x16

Compiled for 1,024 TPU v5p: 49.0 of 95 GiB a chip (6.9 arguments, 42.1 temporaries), in 18 minutes on two busy cores
with JAX_OPTIMIZATION_LEVEL=O1.  A step of 62.9M tokens takes between 47 s, if communication hides behind products, and
101 s, if nothing does: a utilisation of 75% to 35%, by peaks alone.
"""

import dataclasses

from deepseek_jax.config import default_config
from deepseek_jax.models.presets import preset


def get_config():
    config = default_config()
    config.model.update(dataclasses.asdict(preset("v3")))
    config.data.sequence_length = 4096
    config.train.update(steps=235_000, batch_size=15_360, microbatch_size=1024, dtype="bfloat16", remat="full")
    config.optimizer.update(peak_lr=2.2e-4, moment_dtype="bfloat16")  # parameters and gradients stay float32
    config.optimizer.schedule.update(name="v3", warmup_steps=2000)
    config.router.capacity_factor = 1.5  # room for dispatch; what is dropped is counted (router/dropped)
    config.mesh.update(data=1, fsdp=64, expert=16)
    return config
