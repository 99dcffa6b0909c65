"""DeepSeek-V3, 671B parameters, as released (arXiv:2412.19437)."""

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
