"""Checkpoints in the format that DeepSeek publishes on Hugging Face: config.json beside safetensors files."""

from deepseek_jax.convert.reading import load, read_config
from deepseek_jax.convert.writing import export, rewrite, save

__all__ = ["export", "load", "read_config", "rewrite", "save"]
