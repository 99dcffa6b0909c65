"""tests/train/tiny.py as a config file: DeepSeek-V3 in miniature, its text and prepared corpus in $TINY."""

import dataclasses
import os
import time
from pathlib import Path

from deepseek_jax.config import default_config
from deepseek_jax.parallel.shares import Share
from tests.train import tiny


def get_config():
    config = default_config()
    config.update(dataclasses.asdict(tiny.experiment(Path(os.environ["TINY"]), tiny.MOE)))
    config.train.update(batch_size=16, microbatch_size=8)
    config.optimizer.peak_lr = 1e-3  # two experts as good as equal for a token are rare, and flip with the last bit
    config.eval.update(every=0, samples=0)
    config.checkpoint.every = 4
    if pause := float(os.environ.get("SECONDS_A_STEP", "0")):
        _slow_down(pause)
    return config


def _slow_down(seconds):
    place_step = Share.place_step

    def slowly(share, microbatches):
        time.sleep(seconds)
        return place_step(share, microbatches)

    Share.place_step = slowly
