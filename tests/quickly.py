"""How XLA compiles in tests, which run most of their programs but once.

LLVM's optimisations would take half of the suite's time.  Of the two ways in which the XLA of jax 0.10 writes kernels
the newer one takes a third of what is left; jax 0.12 has no other.  tests/test_compiling.py compares with what users
run.
"""

import importlib.metadata

NEWER_WAY = "xla_cpu_use_fusion_emitters"
HAS_BOTH = importlib.metadata.version("jax").startswith("0.10.")
FLAGS = "--xla_backend_optimization_level=0" + f" --{NEWER_WAY}=false" * HAS_BOTH
