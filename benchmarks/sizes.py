"""The model and sizes that all contestants run: v3_tiny without MTP, which no rival trains; 8,420,352 parameters."""

from pathlib import Path

from deepseek_jax.experiment_file import resolve

EXPERIMENT = resolve(str(Path(__file__).parents[1] / "configs/v3_tiny.py"), {"model.num_nextn_predict_layers": "0"})
BATCH, SEQUENCE = 8, 256  # training
PROMPT, NEW = 32, 64  # tokens given and generated in decoding
DECODE_BATCHES = 1, 8
LONG = 512, 2048, 4096  # lengths of long texts, prompt included
