"""DeepSeek-V2, 236B parameters, as released (arXiv:2405.04434)."""

import dataclasses

from configs import v3_671b
from deepseek_jax.models.presets import preset


def get_config():
    config = v3_671b.get_config()
    config.model.update(dataclasses.asdict(preset("v2")))
    config.loss.sequence_balance = 3e-3  # no bias balances the loads here; section 3.1.2
    config.train.update(steps=215_000, batch_size=9216)
    config.optimizer.peak_lr = 2.4e-4
    config.optimizer.schedule.name = "multi_step"
    return config
