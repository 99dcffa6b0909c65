"""DeepSeek-V3, 671B parameters, as released (arXiv:2412.19437), with its batch of 15,360 sequences of 4,096 tokens.

    deepseek-jax compile --config configs/v3_671b.py --topology v5p:8x8x16
    deepseek-jax compile --config configs/v3_671b.py --topology v5p:8x8x8 --mesh fsdp=32 \\
      --config.train.microbatch_size=512

Compiled on two cores with JAX_OPTIMIZATION_LEVEL=O1.  A step of 62.9M tokens takes between the first time, if all
communication hides behind products, and the second, if none does, by peaks alone.

    TPU v5p   GiB a chip of 95   arguments   temporaries   step              utilisation   compiled in
    1,024     49.0               6.9         42.1          47 s to 101 s     75% to 35%    18 min (busy cores)
    512       70.7               13.8        56.9          93 s to 185 s     75% to 38%    3 min

On 256 `plan` counts 81.6, and it counts 17 too few on 512.
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
