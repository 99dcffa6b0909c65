"""DeepSeek-V4-Flash, as released: window, CSA and HCA attention, four hyper-connected streams."""

import dataclasses

from configs import v3_671b
from deepseek_jax.models.presets import preset


def get_config():
    config = v3_671b.get_config()
    config.model.update(dataclasses.asdict(preset("v4-flash")))
    config.loss.indexer_warmup = 0.0
    return config
