"""Settings that a mesh cannot run: training refuses them, `plan` and `compile` report them beforehand."""

from jax.sharding import AbstractMesh, Mesh

from deepseek_jax.config import AnyExperiment
from deepseek_jax.errors import UserError
from deepseek_jax.models.schedule import pipelined_depth
from deepseek_jax.parallel import pipeline
from deepseek_jax.parallel.mesh import check_batch, check_sequence
from deepseek_jax.train.optim.schedules import microbatch_size


def refusals(experiment: AnyExperiment, mesh: Mesh | AbstractMesh) -> list[str]:
    """A sentence for each of the sizes and depths that do not fit the mesh."""
    train = experiment.train
    sizes = {
        "train.microbatch_size or train.batch_size": microbatch_size(train),
        "eval.batch_size": experiment.eval.batch_size,  # 0 if not set, which is a multiple of any number
    }
    checks = [
        *((check_batch, *size) for size in sizes.items()),
        *((pipeline.check, train.pipeline_microbatches, *size) for size in sizes.items()),
    ]
    if experiment.family == "language_model":
        checks.append((check_sequence, "data.sequence_length", experiment.data.sequence_length))
        checks.append((pipeline.check_layers, train.pipeline_rounds, pipelined_depth(experiment.model)))
    else:
        checks.append((_check_records,))
    found = []
    for check, *settings in checks:
        try:
            check(mesh, *settings)
        except UserError as error:
            found.append(str(error))
    return found


def _check_records(mesh):
    for axis, why in (
        ("context", "it splits sequences of tokens, and the hybrid network's records stay whole"),
        ("stage", "it splits the layers of a decoder, and the hybrid network has none that are alike"),
    ):
        if mesh.shape[axis] > 1:
            raise UserError(f"mesh.{axis} is {mesh.shape[axis]}; {why}.  Use mesh.data, mesh.fsdp and mesh.tensor.")
