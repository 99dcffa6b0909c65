"""The base config of the studies: DeepSeek-V3 without MTP, small enough to train in a quarter of a minute on one core.

    deepseek-jax train --config configs/study_tiny.py --workdir runs/study_tiny

The final score uses only 32,768 held-out tokens, the same in every run.
"""

from configs import v3_tiny


def get_config():
    config = v3_tiny.get_config()
    config.model.update(vocab_size=2048, hidden_size=96, num_hidden_layers=2, intermediate_size=240)
    config.model.update(first_k_dense_replace=0, moe_intermediate_size=48)
    config.model.update(q_lora_rank=48, kv_lora_rank=32, num_nextn_predict_layers=0)
    config.model.update(n_group=1, topk_group=1, max_position_embeddings=1024)
    config.data.sequence_length = 128
    config.optimizer.schedule.warmup_steps = 8
    config.train.update(steps=80, batch_size=8)
    config.eval.update(every=0, batch_size=32, batches=1, final_batches=8, samples=0)
    config.checkpoint.update(every=0, keep=1)
    config.log.update(every=5, tensorboard=False)
    return config
