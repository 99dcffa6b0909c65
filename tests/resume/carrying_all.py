"""python -m tests.resume.carrying_all DIRECTORY WORKDIR [RUN]: a run that carries every kind of state between steps.

With RUN it branches from that run's best checkpoint.
"""

import dataclasses
import signal
import sys
from pathlib import Path

from deepseek_jax.config import StartConfig
from deepseek_jax.train.loop import train
from tests.train import tiny

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in jobs of a script's background
directory, workdir, *run = map(Path, sys.argv[1:])
experiment = tiny.carrying_all(directory)
if run:
    start = StartConfig(checkpoint=str(run[0]), best=True, full_state=True)
    experiment = dataclasses.replace(experiment, start=start)
train(experiment, workdir)
