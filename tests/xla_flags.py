"""XLA flags with which the tests compile quickly, as they run most programs only once.

LLVM's optimisations would take half of the suite's time.  jax 0.10's XLA has two code generators for CPU kernels, and
the newer one, fusion emitters, would take a third of the remaining time; jax 0.12 has no other.  XLA gives LLVM each
program in several parts, to compile them in parallel: a whole small program takes a fifth less time than its parts.
tests/test_compiling.py checks that steps compiled this way agree with those that users run.
"""

import importlib.metadata

FUSION_EMITTERS = "xla_cpu_use_fusion_emitters"
EMITTERS_OPTIONAL = importlib.metadata.version("jax").startswith("0.10.")
WHOLE = "--xla_cpu_parallel_codegen_split_count=1"
FAST_COMPILE = f"--xla_backend_optimization_level=0 {WHOLE}" + f" --{FUSION_EMITTERS}=false" * EMITTERS_OPTIONAL
