"""A small hybrid network on scikit-learn's digits, which learns them in seconds."""

import dataclasses

from deepseek_jax.config import (
    CheckpointConfig,
    EvalConfig,
    LogConfig,
    OptimizerConfig,
    SupervisedExperiment,
    TrainConfig,
)
from deepseek_jax.data.augment.config import AugmentConfig, ImageAugmentConfig
from deepseek_jax.data.sets.config import DatasetConfig
from deepseek_jax.models.hybrid.config import AttentionConfig, ConvolutionConfig, HybridConfig, RecurrentConfig

MODEL = HybridConfig(
    convolution=ConvolutionConfig(filters=(16,), norm="batch"),
    recurrent=RecurrentConfig(hidden_size=32),
    attention=AttentionConfig(num_heads=2, key_dim=16),
    dropout=0.1,
)


def experiment(**changes) -> SupervisedExperiment:
    """A small network on scikit-learn's digits, with `changes` to the experiment's sections."""
    return dataclasses.replace(
        SupervisedExperiment(
            model=MODEL,
            dataset=DatasetConfig(name="digits"),
            augment=AugmentConfig(image=ImageAugmentConfig(rotate=5.0)),
            optimizer=OptimizerConfig(peak_lr=1e-2),
            train=TrainConfig(steps=120, batch_size=64, microbatch_size=32),
            eval=EvalConfig(every=60, batch_size=128),
            checkpoint=CheckpointConfig(every=25),
            log=LogConfig(every=10, tensorboard=False),
        ),
        **changes,
    )
