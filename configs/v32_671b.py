"""DeepSeek-V3.2, 671B parameters: V3 whose attention sees the 2,048 keys that its indexer picks (V3.2-Exp)."""

import dataclasses

from configs import v3_671b
from deepseek_jax.models.presets import preset


def get_config():
    config = v3_671b.get_config()
    config.model.update(dataclasses.asdict(preset("v3.2")))
    config.loss.indexer_warmup = 0.0  # the sparse stage: what warms up runs dense, from a checkpoint of V3
    return config
