"""Object detection by the hybrid network: boxes and classes of handwritten digits in scenes.

    deepseek-jax train --config configs/hybrid_detect.py --workdir runs/detect

Test mAP at IoU 0.5, seeds 0, 1, 2: 0.906, 0.943, 0.943, mean 0.930; at 0.5:0.95 mean 0.533.  1.6 CPU minutes per run.
"""

from deepseek_jax.config import default_config


def get_config():
    config = default_config("supervised")
    config.dataset.name = "scenes"
    config.model.sequence = "cells"
    config.model.convolution.update(filters=(16, 64), kernel_size=5, norm="batch")
    config.model.recurrent.kind = "none"
    config.model.attention.num_heads = 0
    config.augment.image.update(scale=0.1, crop=0.1)
    config.objective.update(name="boxes", size_weight=2.0, offset_weight=0.25)
    config.optimizer.update(peak_lr=4e-3, weight_decay=0.01)
    config.optimizer.schedule.update(name="one_cycle", final_ratio=0.01)
    config.train.update(steps=600, batch_size=32)
    config.eval.update(every=150, batch_size=128)
    return config
