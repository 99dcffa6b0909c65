"""Names for study files: `from experiments import Study, Variant`."""

from deepseek_jax.studies import Claim, Halving, LogUniform, Study, Sweep, Variant

__all__ = ["Claim", "Halving", "LogUniform", "Study", "Sweep", "Variant"]
