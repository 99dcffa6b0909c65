"""A real experiment in miniature, on the topics of Python's `help()`: compiles in seconds, steps take milliseconds."""

import dataclasses
from pathlib import Path

from deepseek_jax.config import (
    CheckpointConfig,
    DataConfig,
    EvalConfig,
    Experiment,
    LogConfig,
    OptimizerConfig,
    ScheduleConfig,
    StoppingConfig,
    TrainConfig,
)
from deepseek_jax.models.config import ModelConfig
from tests.user_files import TOPICS, write_texts

DENSE = ModelConfig(
    vocab_size=400,
    hidden_size=32,
    num_hidden_layers=1,
    intermediate_size=64,
    num_attention_heads=2,
    q_lora_rank=16,
    kv_lora_rank=16,
    qk_nope_head_dim=8,
    qk_rope_head_dim=8,
    v_head_dim=8,
    first_k_dense_replace=1,
    num_nextn_predict_layers=0,
    initializer_range=0.02,
)
MOE = dataclasses.replace(
    DENSE,
    num_hidden_layers=2,
    n_routed_experts=8,
    num_experts_per_tok=2,
    moe_intermediate_size=32,
    n_group=2,
    topk_group=1,
)
FOUR_EXPERTS = dataclasses.replace(MOE, n_routed_experts=4, moe_intermediate_size=16, n_group=1)
ROUTED = dataclasses.replace(MOE, num_hidden_layers=1, first_k_dense_replace=0)  # a single layer, with experts


def experiment(directory: Path, model: ModelConfig = DENSE, steps: int = 40) -> Experiment:
    """A short run of `model`.  Writes the text to `directory`, where its prepared corpus is stored too."""
    text = directory / "topics.jsonl"
    if not text.exists():
        write_texts(text, TOPICS)
    return Experiment(
        model=model,
        data=DataConfig(source=str(text), directory=str(directory / "prepared"), sequence_length=64, held_out=0.1),
        optimizer=OptimizerConfig(peak_lr=3e-3, schedule=ScheduleConfig(warmup_steps=5)),
        train=TrainConfig(steps=steps, batch_size=4, microbatch_size=2),
        eval=EvalConfig(every=16, batches=4, final_batches=4, samples=0),
        checkpoint=CheckpointConfig(every=5),
        log=LogConfig(every=1, tensorboard=False),
    )


def carrying_all(directory: Path) -> Experiment:
    """A run that carries every kind of state between steps: MTP, EMA, a batch-size ramp, early stopping.

    It evaluates every 8 steps.  No evaluation improves on the first by `min_delta`, so patience always runs out.
    """
    given = experiment(directory, dataclasses.replace(ROUTED, num_nextn_predict_layers=1))
    return dataclasses.replace(
        given,
        train=dataclasses.replace(given.train, ema_decay=0.9, ramp_start=2, ramp_stages=2, ramp_fraction=0.5),
        eval=dataclasses.replace(given.eval, every=8),
        stopping=StoppingConfig(patience=3, min_delta=100.0),
    )
