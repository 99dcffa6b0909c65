"""After training: applies a variant's edit to the trained model, scores it again, and runs the study's measures on it.

Each result is stored in the run's directory under the name and source hash of the function that computed it.  So
nothing is measured twice, and no result of an older version of a function is used.  A failed measure leaves its reason.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from deepseek_jax.errors import UserError
from deepseek_jax.files import read_json, write_json
from deepseek_jax.source_names import source_name
from deepseek_jax.studies import reasons
from deepseek_jax.studies.outcome import finite
from deepseek_jax.studies.runs import Run
from deepseek_jax.studies.study import Study, Variant

if TYPE_CHECKING:  # takes a second, and most calls find everything measured
    from deepseek_jax.train.checkpoints.restore import Trained

FOLDER = "measured"  # in a run directory


def all_scores(run: Run, study: Study) -> dict[str, float] | None:
    """The scores of a trained run and of the study's measures; None if something is not measured yet.

    For an edited model, the training's scores on held-out data are left out, even those that it has no value for.
    """
    scores = dict(run.trained["scores"])
    if run.variant.edit:
        scores = {name: score for name, score in scores.items() if not name.startswith(("final/", "val/"))}
    for path in _files(run, study):
        if not path.exists():
            return None
        scores |= {} if reasons.read(path) else read_json(path)
    return scores


def failures(run: Run, study: Study) -> Iterator[tuple[Path, str]]:
    """(file, reason) of each failed measure; the traceback is beside the file, in a .txt."""
    for path in _files(run, study):
        if reason := reasons.read(path):
            yield path, reason


def measure(run: Run, study: Study):
    """Runs the measures that are still missing for a trained run; one that fails does not stop the others."""
    missing = [path for path in _files(run, study) if not path.exists()]
    if not missing:
        return
    trained = restore(run)
    functions = {source_name(function): function for function in study.measures}
    for path in missing:
        function = functions.get(path.stem.rpartition("+")[2])
        if function is None:  # "scores"
            write_json(path, held_out_scores(trained))
            continue
        try:
            write_json(path, finite(function(trained)))
        except Exception as error:  # a bug in the measure, or it does not fit this variant
            reasons.write(path, f"the measure {function.__name__} failed: {reasons.summary(error)}", error)


def sources(variant: Variant, study: Study) -> list[str]:
    """The names under which the results of the edit and the measures are stored; they change with the source."""
    edit = f"{source_name(variant.edit)}+" if variant.edit else ""
    names = (["scores"] if edit else []) + [source_name(function) for function in study.measures]
    return [edit + name for name in names]


def _files(run: Run, study: Study) -> list[Path]:
    return [run.directory / FOLDER / f"{name}.json" for name in sources(run.variant, study)]


def restore(run: Run) -> "Trained":
    """The trained model of a run, with its variant's edit applied."""
    from deepseek_jax.train.checkpoints.restore import restore_model, sizes

    trained = restore_model(run.directory)
    if not run.variant.edit:
        return trained
    edited = run.variant.edit(trained.experiment, trained.params, trained.buffers)
    if not (isinstance(edited, (tuple, list)) and len(edited) == 3):
        raise UserError(
            f"the edit {run.variant.edit.__name__} must return (experiment, params, buffers), as it was given them."
        )
    experiment, params, buffers = edited
    config = sizes(experiment, run.directory)
    return dataclasses.replace(trained, experiment=experiment, config=config, params=params, buffers=buffers)


def held_out_scores(trained: "Trained") -> dict[str, float]:
    """The final/* scores of an edited model, on the same held-out data as those after training."""
    from deepseek_jax.train import setup, views

    # An edit returns the model's own weights, not what was trained in their place (adapters, say).
    scoring = setup.prepare(views.without_views(trained.experiment))
    found = scoring.scores(trained.params, trained.buffers, "final", trained.experiment.eval.final_batches)
    return finite({f"final/{name}": value for name, value in found.items()})
