"""DeepSeekMoE in miniature: multi-head attention, softmax-routed experts balanced by a loss, one shared expert.

    deepseek-jax train --config configs/moe_tiny.py --workdir runs/moe_tiny

9.0M parameters, 5.4M active.

Two cores, 3,360 tokens/s.  Held-out bits per byte after 200 steps (--config.train.steps=200): 2.068.
"""

from configs import v3_tiny


def get_config():
    config = v3_tiny.get_config()
    config.model.update(layer_types=("gqa",), num_key_value_heads=4, head_dim=64, rope_interleave=False)
    config.model.update(scoring_func="softmax", topk_method="greedy", n_group=1, topk_group=1)
    config.model.update(norm_topk_prob=False, routed_scaling_factor=1.0, num_nextn_predict_layers=0)
    config.loss.sequence_balance = 1e-3  # there is no balancing bias; DeepSeekMoE-16B's factor
    return config
