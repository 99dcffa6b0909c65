"""A small DeepSeek-V3 learns to add by reasoning digit by digit: the cold start of configs/grpo_tiny.py.

    deepseek-jax train --config configs/sums_tiny.py --workdir runs/sums_tiny
    deepseek-jax generate --workdir runs/sums_tiny --think --prompt "47+985"

Trains on conversations (experiments/parts/sums.py) in the template of V4, from random parameters.  1.2M parameters; two
cores beside other work: three minutes.  Held-out loss 0.2507 nats per token; solves 16.6% of held-out additions.
"""

from configs import v3_tiny
from deepseek_jax.config import add_plugins


def get_config():
    config = v3_tiny.get_config()
    add_plugins(config, "experiments.parts.sums")
    config.model.update(vocab_size=272, hidden_size=128, num_hidden_layers=3, intermediate_size=384)
    config.model.update(num_nextn_predict_layers=0, moe_intermediate_size=64, q_lora_rank=64)
    config.data.update(source="sums", chat="v4", tokenizer="experiments/parts/sums_tokenizer.json", fim_rate=0.0)
    config.data.sequence_length = 128
    config.optimizer.peak_lr = 2e-3
    config.optimizer.schedule.update(name="constant", warmup_steps=20)
    config.train.update(steps=300, batch_size=16)
    config.eval.update(every=50, batches=8, final_batches=0)
    return config
