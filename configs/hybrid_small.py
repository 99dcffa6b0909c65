"""The hybrid network for studies: MNIST-5k at a constant learning rate, with early stopping.

deepseek-jax train --config configs/hybrid_small.py --workdir runs/small
"""

from deepseek_jax.config import default_config


def get_config():
    config = default_config("supervised")
    config.dataset.name = "mnist5k"
    config.model.convolution.update(filters=(16, 32), norm="batch")
    config.model.recurrent.hidden_size = 32
    config.model.attention.update(num_heads=2, key_dim=16, residual=True)
    config.model.readout = "mean"
    config.model.dropout = 0.2
    config.augment.image.update(rotate=12.0, scale=0.1, crop=0.1)
    config.optimizer.update(peak_lr=3e-3, weight_decay=0.02)
    config.optimizer.schedule.update(name="constant", warmup_steps=20)
    config.train.update(steps=400, batch_size=64)
    config.eval.update(every=25, batch_size=250)
    config.stopping.update(patience=3)
    return config
