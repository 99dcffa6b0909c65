"""Studies: a claim, variants that differ in one thing, paired seeds, and a verdict.  See docs/studies.md."""

from deepseek_jax.studies.claims import Claim
from deepseek_jax.studies.study import Study, Variant
from deepseek_jax.studies.sweep import Halving, LogUniform, Sweep

__all__ = ["Claim", "Halving", "LogUniform", "Study", "Sweep", "Variant"]
