"""XLA flags with which the tests compile quickly, as they run most programs only once.

LLVM's optimisations would take half of the suite's time.  jax 0.10's XLA has two code generators for CPU kernels, and
the newer one, fusion emitters, would take a third of the remaining time; jax 0.12 has no other.
tests/test_compiling.py checks that steps compiled this way agree with those that users run.
"""

import importlib.metadata

FUSION_EMITTERS = "xla_cpu_use_fusion_emitters"
EMITTERS_OPTIONAL = importlib.metadata.version("jax").startswith("0.10.")
FAST_COMPILE = "--xla_backend_optimization_level=0" + f" --{FUSION_EMITTERS}=false" * EMITTERS_OPTIONAL
