"""DeepSeek-V4-Flash, as released: window, CSA and HCA attention, four hyper-connected streams; V3's batch.

    deepseek-jax compile --config configs/v4_flash.py --topology v5p:8x8x8

Compiled for 512 TPU v5p: 48.8 of 95 GiB a chip (5.9 arguments, 42.9 temporaries), in 9 minutes on two busy cores with
JAX_OPTIMIZATION_LEVEL=O1.  A step of 62.9M tokens takes between 43 s, if communication and products hide behind memory
traffic, and 95 s, if nothing does: a utilisation of 56% to 26%, by peaks alone.

On 256 (--topology v5p:4x8x8 --mesh fsdp=16 --config.train.microbatch_size=256) it fits too: 62.6 GiB (11.8 arguments,
50.9 temporaries), a step between 137 s and 237 s; compiled with the ragged all-to-all in 25 minutes beside other work.
"""

import dataclasses

from configs import v3_671b
from deepseek_jax.models.presets import preset


def get_config():
    config = v3_671b.get_config()
    config.model.update(dataclasses.asdict(preset("v4-flash")))
    config.loss.indexer_warmup = 0.0
    config.train.microbatch_size = 512
    config.mesh.update(fsdp=32, expert=16)
    return config
