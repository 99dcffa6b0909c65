"""XLA flags with which the tests compile quickly, as they run most programs only once.

LLVM's optimisations would take half of the suite's time.  jax 0.10's XLA has two code generators for CPU kernels, and
the newer one, fusion emitters, would take a third of the remaining time; jax 0.12 has no other.
tests/test_compiling.py checks that steps compiled this way agree with those that users run.
"""

import importlib.metadata

NEWER_WAY = "xla_cpu_use_fusion_emitters"
HAS_BOTH = importlib.metadata.version("jax").startswith("0.10.")
FLAGS = "--xla_backend_optimization_level=0" + f" --{NEWER_WAY}=false" * HAS_BOTH
