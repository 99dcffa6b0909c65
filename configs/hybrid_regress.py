"""Regression by the hybrid network: progression of diabetes from ten measurements (scikit-learn's load_diabetes).

    deepseek-jax train --config configs/hybrid_regress.py --workdir runs/regress

Test R2, seeds 0, 1, 2: 0.442, 0.440, 0.452, mean 0.444; ridge regression 0.451.  Over twenty folds of the remaining
records: 0.500, ridge regression 0.488.  6 CPU seconds per run.
"""

from deepseek_jax.config import default_config


def get_config():
    config = default_config("supervised")
    config.dataset.update(name="diabetes", val=0.15, test=0.25)
    config.model.convolution.update(filters=(128,), kernel_size=1, pool="none", activation="gelu", norm="none")
    config.model.recurrent.kind = "none"
    config.model.attention.num_heads = 0
    config.model.dropout = 0.5
    config.objective.update(name="mse", l2=0.1)
    config.optimizer.update(peak_lr=1e-3, weight_decay=0.1)
    config.optimizer.schedule.update(name="cosine")
    config.train.update(steps=800, batch_size=64, ema_decay=0.98)
    config.eval.update(every=100, batch_size=64)
    return config
