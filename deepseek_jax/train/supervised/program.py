"""What the training step needs of the hybrid network, as pure functions: parameters, axes, loss, scores.

B records  K microbatches
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from deepseek_jax.config import SupervisedExperiment
from deepseek_jax.models import tree
from deepseek_jax.models.arithmetic import Arithmetic, give
from deepseek_jax.models.hybrid.config import HybridConfig
from deepseek_jax.models.hybrid.feature_norms import updated_buffers
from deepseek_jax.models.hybrid.network import Hybrid
from deepseek_jax.tasks import detection
from deepseek_jax.tasks.objectives import OBJECTIVES, penalty
from deepseek_jax.tasks.scores import MOST_PEAKS
from deepseek_jax.train.optim.optimizer import decays
from deepseek_jax.train.program import Program, microbatch_key, replicated_axes
from deepseek_jax.views.arithmetic import chooser

NORM_MOMENTUM = 0.1  # of batch norms' running averages, as in PyTorch


def supervised_program(
    experiment: SupervisedExperiment, model: HybridConfig, choose: Callable[[str, int], Arithmetic] | None = None
) -> Program:
    """`model` has the sizes that the data decides; `choose`: see train/program.language_model_program.

    Dropout is drawn from the seed that the microbatch holds, the number of the update and that of the microbatch, so
    that a resumed run continues as if uninterrupted, and runs with several seeds share a program.  score: {"answer",
    "loss", "weights"} and the true labels or targets, one row per record; see `answer`.
    """
    objective = experiment.objective
    objective_of = OBJECTIVES[objective.name]

    def make():
        return Hybrid(model, rngs=tree.new_rngs(experiment.train.seed), dtype=experiment.train.dtype)

    abstract = jax.eval_shape(make)
    graphdef, _, _ = tree.split(give(abstract, choose or chooser(experiment.arithmetic)))
    axes, buffer_axes = tree.logical_axes(abstract)

    def loss(params, buffers, batch, totals, scheduled):
        key = microbatch_key(jax.random.key(batch["seed"][0]), scheduled)
        network = tree.merge(graphdef, params, buffers)
        outputs, statistics = network(batch["inputs"], batch.get("lengths"), key=key)
        share_B = batch["weights"] / totals["weights"]
        fit = (objective_of(outputs, batch, objective) * share_B).sum()
        pull = penalty(params, objective, decays) * share_B.sum()
        statistics = jax.tree.map(lambda seen: seen * share_B.sum(), statistics)
        parts = {"loss/fit": fit, "loss/total": fit + pull, "statistics": statistics}
        return fit + pull, parts | ({"loss/penalty": pull} if objective.l1 or objective.l2 else {})

    def score(params, buffers, batch):
        outputs, _ = tree.merge(graphdef, params, buffers)(batch["inputs"], batch.get("lengths"))
        known = {name: batch[name] for name in ("labels", "targets", "boxes", "box_labels") if name in batch}
        rows = {"answer": answer(outputs, model.head), "loss": objective_of(outputs, batch, objective)}
        return rows | known | {"weights": batch["weights"]}

    return Program(
        graphdef=graphdef,
        axes=axes,
        buffer_axes=replicated_axes(buffer_axes),
        make_parameters=lambda: tree.split(make())[1:],
        totals=lambda batch: {"weights": jnp.maximum(batch["weights"].sum(), 1e-9)},
        scheduled=lambda update: {"update": update},
        loss=loss,
        update_buffers=lambda params, buffers, aux, update: updated_buffers(buffers, aux["statistics"], NORM_MOMENTUM),
        score=score,
        parts=experiment.parts,
        made_of=(objective_of,),
    )


def answer(outputs, head: str):
    """The prediction for each record: probabilities or numbers [B N], or (boxes, classes, scores) [B P ...]."""
    answers: dict[str, Callable] = {
        "classes": jax.nn.softmax,
        "numbers": lambda numbers: numbers,
        "boxes": lambda maps: detection.decode(maps, MOST_PEAKS),
    }
    return answers[head](outputs)
