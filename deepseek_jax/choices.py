"""Choices and defaults that --help shows and other rooms use: here, as this imports nothing that takes time."""

from pathlib import Path

DTYPES = ("float32", "bfloat16", "float16")  # of a model's weights
SPELLINGS = ("huggingface", "deepseek")  # of V4's tensor names and config.json keys
STUDIES_ROOT = Path("runs/studies")  # where the runs of studies are kept
