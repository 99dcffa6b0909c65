"""Adapters of rank 2 beside every matrix of v3_tiny, experts too, trained on literature.

deepseek-jax train --config configs/lora_tiny.py --workdir runs/lora_tiny
deepseek-jax adapters save runs/lora_tiny adapters/
"""

from configs import tune_tiny


def get_config():
    config = tune_tiny.get_config()
    config.tune.lora.update(rank=2, alpha=16.0)
    config.optimizer.peak_lr = 2e-3
    return config
