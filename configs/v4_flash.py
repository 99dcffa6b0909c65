"""DeepSeek-V4-Flash, as released: window, CSA and HCA attention, four hyper-connected streams; V3's batch.

    deepseek-jax compile --config configs/v4_flash.py --topology v5p:4x8x8

Compiled for 256 TPU v5p: 63.0 of 95 GiB per chip (11.8 arguments, 51.2 temporaries), in 13 minutes beside other work
with JAX_OPTIMIZATION_LEVEL=O1.  A step of 62.9M tokens takes 65 s if everything overlaps, 163 s if nothing overlaps: a
utilisation of 75% to 30%, at the hardware's peak rates.  Attention and its indexer run in kernels, whose repeated
products are not counted (benchmarks/findings.md).
"""

import dataclasses

from configs import v3_671b
from deepseek_jax.models.presets import preset


def get_config():
    config = v3_671b.get_config()
    config.model.update(dataclasses.asdict(preset("v4-flash")))
    config.loss.indexer_warmup = 0.0
    config.train.microbatch_size = 256
    config.mesh.update(fsdp=16, expert=16)
    config.checkpoint.every = 10  # half an hour of steps
    return config
