"""After training: edits of a trained model, its scores once more, and what a study's measures say of it.

Everything is kept in the run's directory by the name and source of the function that gave it, so that nothing is
measured twice, and nothing is mistaken for what an older function gave.  Of a measure that fails that is the reason.
"""

import json
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from deepseek_jax.studies.outcome import Trained, finite, said
from deepseek_jax.studies.runs import Run
from deepseek_jax.studies.source_names import source_name
from deepseek_jax.studies.study import Study, Variant
from deepseek_jax.whole_files import write_json

FOLDER = "measured"  # below a run directory
FAILED = "failed"  # the one entry of what a measure that failed leaves


def all_scores(run: Run, study: Study) -> dict[str, float] | None:
    """Of a trained run and of the study's measures; None where something is not measured yet.

    What the training scored of held-out data is not the edited model's, also where the latter has no number for it.
    """
    scores = dict(run.trained["scores"])
    if run.variant.edit:
        scores = {name: score for name, score in scores.items() if not name.startswith(("final/", "val/"))}
    for path in _files(run, study):
        if not path.exists():
            return None
        found = json.loads(path.read_text())
        scores |= {} if FAILED in found else found
    return scores


def failures(run: Run, study: Study) -> Iterator[tuple[Path, str]]:
    """(file, reason) of the measures that failed; the traceback lies beside the file."""
    for path in _files(run, study):
        if path.exists() and (reason := json.loads(path.read_text()).get(FAILED)):
            yield path, reason


def measure(run: Run, study: Study):
    """Measures what is not yet measured of a trained run; what fails leaves the scores of the others as they are."""
    missing = [path for path in _files(run, study) if not path.exists()]
    if not missing:
        return
    trained = restore(run)
    functions = {source_name(function): function for function in study.measures}
    for path in missing:
        name = path.stem.rpartition("+")[2]
        write_json(path, _tried(functions[name], trained, path) if name in functions else held_out_scores(trained))


def _tried(function: Callable, trained: Trained, path: Path) -> dict:
    try:
        return finite(function(trained))
    except Exception as error:  # a bug of the measure, or one that does not fit this variant
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".txt").write_text(traceback.format_exc())
        return {FAILED: f"the measure {function.__name__} failed: {said(error)}"}


def sources(variant: Variant, study: Study) -> list[str]:
    """The names by which what the edit and the measures gave is kept; of code that changed they are others."""
    edit = f"{source_name(variant.edit)}+" if variant.edit else ""
    names = (["scores"] if edit else []) + [source_name(function) for function in study.measures]
    return [edit + name for name in names]


def _files(run: Run, study: Study) -> list[Path]:
    return [run.directory / FOLDER / f"{name}.json" for name in sources(run.variant, study)]


def restore(run: Run) -> Trained:
    """The trained model of a run, edited as its variant says."""
    from deepseek_jax.train.restore import restore_model, structure

    found = restore_model(run.directory)
    experiment, params, buffers, graphdef = found.experiment, found.params, found.buffers, found.graphdef
    if run.variant.edit:
        experiment, params, buffers = run.variant.edit(experiment, params, buffers)
        graphdef, _, _ = structure(experiment, run.directory)
    return Trained(experiment, run.directory, graphdef, params, buffers)


def held_out_scores(trained: Trained) -> dict[str, float]:
    """final/* of a model that was edited, on the data that its training was scored on."""
    from rich.console import Console

    from deepseek_jax.train import setup, views

    # What is edited are the weights of the model itself, whatever its training kept of them.
    scoring = setup.prepare(views.without_views(trained.experiment), Console(quiet=True))
    batches = scoring.held_out_batches("final", trained.experiment.eval.final_batches)
    found = scoring.task.scores(scoring.compiled_score(), trained.params, trained.buffers, batches)
    return finite({f"final/{name}": value for name, value in found.items()})
