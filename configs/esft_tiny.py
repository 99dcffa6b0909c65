"""Of v3_tiny only the experts that literature uses, trained on literature.

    deepseek-jax train --config configs/esft_tiny.py --workdir runs/esft_tiny \\
      --config.tune.experts="$(deepseek-jax esft --config configs/esft_tiny.py --threshold 0.35)"
"""

from configs import tune_tiny


def get_config():
    config = tune_tiny.get_config()
    config.optimizer.peak_lr = 1e-2
    return config
