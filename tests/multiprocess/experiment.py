"""tests/train/tiny.py as a config file: DeepSeek-V3 in miniature, with its text and prepared corpus in $TINY.

Further environment variables slow steps or evaluation down, or let writing a checkpoint fail as on a full disk.
"""

import dataclasses
import errno
import os
import time
from pathlib import Path

from deepseek_jax.config import default_config
from deepseek_jax.parallel.shares import Share
from deepseek_jax.train.checkpoints import integrity
from tests.train import tiny


def get_config():
    config = default_config()
    config.update(dataclasses.asdict(tiny.experiment(Path(os.environ["TINY"]), tiny.ROUTED)))
    config.train.update(batch_size=16, microbatch_size=8)
    config.optimizer.peak_lr = 1e-3  # small, as near ties between experts, which rounding could flip, must stay rare
    config.eval.update(every=0, samples=0)
    config.checkpoint.every = 4
    for variable, method in (("SECONDS_A_STEP", "place_step"), ("SECONDS_A_HELD_OUT_BATCH", "place")):
        if pause := float(os.environ.get(variable, "0")):
            _slow_down(method, pause)
    if os.environ.get("FULL_DISK"):
        integrity.record = _find_no_room
    return config


def _find_no_room(_):
    raise OSError(errno.ENOSPC, "No space left on device")


def _slow_down(method, seconds):
    place = getattr(Share, method)

    def slowly(share, batch):
        time.sleep(seconds)
        return place(share, batch)

    setattr(Share, method, slowly)
