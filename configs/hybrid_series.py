"""Forecasting by the hybrid network: the next twelve months of CO2 at Mauna Loa.

    deepseek-jax train --config configs/hybrid_series.py --workdir runs/series

Test mean absolute error in ppm, seeds 0, 1, 2: 0.492, 0.478, 0.482, mean 0.484; seasonal naive 1.52.  10 CPU seconds
per run.
"""

from deepseek_jax.config import default_config


def get_config():
    config = default_config("supervised")
    config.dataset.update(name="co2", val=0.15, test=0.25)
    config.model.convolution.update(filters=(32,), kernel_size=3, pool="none", activation="gelu")
    config.model.recurrent.update(kind="gru", hidden_size=64)
    config.model.attention.update(num_heads=2, key_dim=16, residual=True)
    config.model.dropout = 0.1
    config.objective.name = "huber"
    config.optimizer.update(peak_lr=3e-3, weight_decay=0.02)
    config.optimizer.schedule.update(name="cosine", warmup_steps=20)
    config.train.update(steps=600, batch_size=64, ema_decay=0.98)
    config.eval.update(every=40, batch_size=64)
    config.stopping.update(metric="val/mae", patience=6)
    return config
