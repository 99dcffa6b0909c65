"""DeepSeek-V4-Pro, as released: window, CSA and HCA attention, four hyper-connected streams, 384 experts.

    deepseek-jax compile --config configs/v4_pro.py --topology v5p:8x8x16

Compiled for 1,024 TPU v5p it does not fit: 102.5 of 95 GiB a chip (14.5 arguments, 88.0 temporaries).  More chips have
not been compiled for yet.
"""

import dataclasses

from configs import v3_671b
from deepseek_jax.models.presets import preset


def get_config():
    config = v3_671b.get_config()
    config.model.update(dataclasses.asdict(preset("v4-pro")))
    config.loss.indexer_warmup = 0.0
    return config
