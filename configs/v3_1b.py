"""DeepSeek-V3 with a billion parameters for one GPU: MLA, top-4 of 32 experts, one shared, one MTP module, bfloat16.

    deepseek-jax train --config configs/v3_1b.py --workdir runs/v3_1b

948M parameters, 287M active per token, and 60M in the MTP module.  On an H200 a microbatch of four sequences takes 57
GB, and one of sixteen would need 142 GB.  Only the first steps have been run (loss 10.56); compiling took over three
minutes there, and speed and scores have not been measured.
"""

from deepseek_jax.config import default_config


def get_config():
    config = default_config()
    config.model.update(vocab_size=32768, hidden_size=1024, num_hidden_layers=16, intermediate_size=4096)
    config.model.update(num_attention_heads=16, q_lora_rank=512, kv_lora_rank=256)
    config.model.update(first_k_dense_replace=1, n_routed_experts=32, num_experts_per_tok=4, moe_intermediate_size=512)
    config.model.update(n_group=4, topk_group=2, initializer_range=0.02, max_position_embeddings=4096)
    config.data.sequence_length = 4096
    config.optimizer.peak_lr = 4e-4
    config.optimizer.schedule.update(name="v3", warmup_steps=100)
    config.train.update(steps=1000, batch_size=16, microbatch_size=4, dtype="bfloat16")
    config.checkpoint.every = 500
    return config
