"""DeepSeek-V3.2, 671B parameters: V3 with attention over the 2,048 keys that an indexer selects (V3.2-Exp).

    deepseek-jax compile --config configs/v32_671b.py --topology v5p:8x8x8

Compiled for 512 TPU v5p: 74.6 of 95 GiB per chip (14.0 arguments, 60.7 temporaries), in four and a half minutes beside
other work with JAX_OPTIMIZATION_LEVEL=O1.  A step of 62.9M tokens takes 94 s if everything overlaps, 207 s if nothing
overlaps: a utilisation of 75% to 34%, at the hardware's peak rates.  Attention and its indexer run in kernels, whose
repeated products are not counted (benchmarks/findings.md).
"""

import dataclasses

from configs import v3_671b
from deepseek_jax.models.presets import preset


def get_config():
    config = v3_671b.get_config()
    config.model.update(dataclasses.asdict(preset("v3.2")))
    config.loss.indexer_warmup = 0.0  # the sparse stage; the dense warm-up stage starts from a V3 checkpoint
    config.train.microbatch_size = 512
    config.mesh.fsdp = 32
    config.checkpoint.every = 10  # half an hour of steps
    return config
