"""Handwritten digits found in scenes: boxes and classes."""

from deepseek_jax.config import default_config


def get_config():
    config = default_config("supervised")
    config.dataset.name = "scenes"
    config.model.update(sequence="cells", dropout=0.0)
    config.model.convolution.update(filters=(32, 64), convs_per_block=2, norm="batch")
    config.model.recurrent.kind = "none"
    config.model.attention.update(num_heads=4, key_dim=16, residual=True, norm=True)
    config.objective.name = "boxes"
    config.optimizer.update(peak_lr=2e-3, weight_decay=0.01)
    config.optimizer.schedule.update(name="one_cycle", final_ratio=0.01)
    config.train.update(steps=800, batch_size=32)
    config.eval.update(every=100, batch_size=128)
    return config
