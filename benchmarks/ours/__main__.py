"""python -m benchmarks.ours training|decoding: answers through rivals/serve.py, as the rivals do."""

import importlib
import sys

from benchmarks.rivals.serve import serve
from deepseek_jax.cli import runtime

runtime.prepare()  # as the command line does, before anything imports jax
serve(*importlib.import_module(f"benchmarks.ours.{sys.argv[1]}").prepare())
