"""python -m tests.resume.carrying_all DIRECTORY WORKDIR: a run that carries every kind of state between its steps."""

import signal
import sys
from pathlib import Path

from deepseek_jax.train.loop import train
from tests.train import tiny

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in jobs of a script's background
directory, workdir = map(Path, sys.argv[1:])
train(tiny.carrying_all(directory), workdir)
