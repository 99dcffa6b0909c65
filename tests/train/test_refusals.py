"""Everything in an experiment that does not fit the mesh is reported together."""

import dataclasses

import pytest

from deepseek_jax.config import EvalConfig, SupervisedExperiment
from deepseek_jax.train.refusals import refusals
from tests.parallel.meshes import abstract_mesh
from tests.train import tiny


def test_every_setting_that_does_not_fit_the_mesh_is_reported(tmp_path):
    """For microbatches of 2 sequences of 64 tokens, and a model of one dense layer and one with experts."""
    experiment = dataclasses.replace(tiny.experiment(tmp_path, tiny.MOE), eval=EvalConfig(batch_size=6))
    assert refusals(experiment, abstract_mesh()) == []
    batch, scored, length = refusals(experiment, abstract_mesh(data=4, context=3))
    assert "train.microbatch_size or train.batch_size is 2, which is not divisible by the 4 devices" in batch
    assert "eval.batch_size is 6, which is not divisible by the 4 devices" in scored
    assert "data.sequence_length is 64, which is not divisible by the 3 devices" in length
    (layers,) = refusals(experiment, abstract_mesh(stage=2))
    assert "2 stages (mesh.stage) times 1 (train.pipeline_rounds) are more parts than the 1 layer" in layers


@pytest.mark.parametrize(
    "sizes, said",
    [
        *(({axis: 2}, f"mesh.{axis} is 2; it splits") for axis in ("context", "stage")),
        ({"data": 5}, "train.batch_size is"),
    ],
)
def test_meshes_that_would_split_records_of_a_hybrid_network_are_refused(sizes, said):
    (refused,) = refusals(SupervisedExperiment(), abstract_mesh(**sizes))
    assert said in refused
