"""Supervised fine-tuning: v3_tiny learns to answer questions on AWS operations in the words of their documentation.

    deepseek-jax train --config configs/sft_tiny.py --workdir runs/sft_tiny
    deepseek-jax generate --workdir runs/sft_tiny --prompt "What does the operation CreateBucket of s3 do?"

Loss on the answers: 4.63 nats per token at the first step, 4.34 on held-out answers after the 40 steps.
"""

from configs import tune_tiny


def get_config():
    config = tune_tiny.get_config()
    config.data.update(source="operations", chat="v3")
    return config
