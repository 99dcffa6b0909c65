"""The model that a run begins from: newly initialised, or read from a checkpoint, with some parts initialised anew."""

import dataclasses
import functools
import re
import reprlib
from collections.abc import Callable, Iterable, Iterator, Set
from pathlib import Path

import jax
from jax.sharding import Mesh

from deepseek_jax.config import AnyExperiment, SupervisedExperiment
from deepseek_jax.convert import efficientnet
from deepseek_jax.data.tokenizer import TOKENIZER
from deepseek_jax.errors import UserError
from deepseek_jax.fields import flatten, shown
from deepseek_jax.models import tree
from deepseek_jax.parallel import rules
from deepseek_jax.train.checkpoints import any_checkpoint, dataset_record
from deepseek_jax.train.checkpoints.restore import Trained
from deepseek_jax.train.program import Program
from deepseek_jax.train.setup import Setup
from deepseek_jax.train.state import State, make_state
from deepseek_jax.views.pruned import pruned_matrices


def check(experiment: AnyExperiment):
    """UserError if a new run could not begin from what it asks for, or not learn.  Old runs can still be read."""
    start, zeros = experiment.start, experiment.prune.method == "zeros"
    asked = {f"start.{name}": getattr(start, name) for name in ("best", "step", "full_state", "fresh")}
    for key, given in (asked | {"prune.method=zeros": zeros}).items():
        if given and not start.checkpoint:
            raise UserError(f"{key} applies to start.checkpoint, which is empty; name one, or leave {key} out.")
    if start.best and start.step:
        raise UserError("start.best and start.step both name a checkpoint; leave one of them out.")
    if start.full_state and start.fresh:
        raise UserError(
            "start.full_state takes over all parameters and their moments, and start.fresh would replace some; leave "
            "one of them out."
        )
    if experiment.tune.lora.rank and not experiment.tune.lora.alpha:
        raise UserError("tune.lora.alpha is 0, which multiplies what adapters add; set it to another number.")
    if zeros and experiment.tune.lora.rank and not experiment.tune.train:
        raise UserError(
            "prune.method is zeros, but tune.lora trains only adapters, which are added to zeros too; leave one of "
            "them out."
        )


def first_state(setup: Setup, say: Callable[[str], None] = print) -> State:
    """The state before the first step, as the experiment's `start` asks; `say` is given a note on what differs.

    Of a checkpoint it takes the model only: for start.full_state see train/branch.py.

    Raises UserError if the network could not learn, or if the checkpoint does not fit the model: the message names the
    first parameter that is missing, of another shape or left over, and the settings that differ.
    """
    start, model = setup.experiment.start, None
    check(setup.experiment)
    setup.task.check_new()
    if start.checkpoint:
        found = _read(setup)
        check_family(setup, found.experiment)
        model = _fitted(setup, found)
        if setup.experiment.prune.method == "zeros":
            _check_zeros(setup, model[0])
        check_tokenizer(setup)
        if different := ", ".join(filter(None, (_different(setup, found), *of_other_data(setup)))):
            say(f"beginning from {start.checkpoint}, where {different}")
    return make_state(setup.program, setup.optimizer, setup.abstract, model)


def check_family(setup: Setup, found: AnyExperiment):
    """UserError if the checkpoint's experiment, `found`, is of another family than this one."""
    if found.family != setup.experiment.family:
        raise UserError(
            f"start.checkpoint is {setup.experiment.start.checkpoint}, a model of the family {found.family}; this "
            f"experiment is of the family {setup.experiment.family}."
        )


def _read(setup: Setup) -> Trained:
    """The model of start.checkpoint.  A .pth file is EfficientNet-Lite0, the convolution of a hybrid network: a part,
    sized by its arrays alone, so that its config is None.
    """
    start, path = setup.experiment.start, Path(setup.experiment.start.checkpoint)
    if path.suffix == ".pth" and not (start.best or start.step):
        arrays = jax.device_put(efficientnet.load(path), rules.replicated(setup.mesh))
        return Trained(path, SupervisedExperiment(), 0, None, *arrays)
    return any_checkpoint.read(path, start.step or None, mesh_of=lambda _: setup.mesh, best=start.best)


def _fitted(setup: Setup, found: Trained) -> tuple[dict, dict]:
    """(params, buffers) of the run's model: the checkpoint's, or new ones if start.fresh matches their path."""
    own = setup.program.model or setup.program
    shapes = jax.eval_shape(own.make_parameters)
    ours, theirs = tree.by_path(shapes), tree.by_path((found.params, found.buffers))
    new = _new_paths(setup.experiment.start.fresh, ours | theirs)
    if found.config is None:  # part of a network: what it lacks is new, what only it has is ignored
        if not ours.keys() & theirs.keys():
            raise UserError(
                f"{setup.experiment.start.checkpoint} holds EfficientNet-Lite0, of which this model has no part; set "
                "model.convolution.kind=efficientnet_lite0 and leave model.convolution.filters at its default."
            )
        new |= ours.keys() ^ theirs.keys()
    if ours.keys() <= new:
        fresh, directory = setup.experiment.start.fresh, setup.experiment.start.checkpoint
        raise UserError(f"start.fresh is {fresh!r}, which leaves nothing of {directory} to begin from; narrow it down.")
    for path in ours | theirs:
        if path not in new:
            _check(setup, found, path, ours.get(path), theirs.get(path))
    taken = theirs | _made(own, setup.mesh, shapes, new & ours.keys())
    return jax.tree_util.tree_map_with_path(lambda path, _: taken[tree.path_of(path)], shapes)


def _check_zeros(setup: Setup, params: dict):
    """UserError if no weight that prune.method=zeros would hold is zero."""
    start, prune = setup.experiment.start, setup.experiment.prune
    flat = tree.flatten(params)
    weights = [flat[path] for path in pruned_matrices(prune, flat)]
    if not jax.jit(lambda weights: sum((weight == 0).any() for weight in weights))(weights):
        where = f" in the matrices of prune.paths, {prune.paths!r}" if prune.paths else ""
        raise UserError(
            f"prune.method is zeros, but {start.checkpoint} has none{where}; begin from what `deepseek-jax prune` "
            "wrote, or leave prune.method out."
        )


def _new_paths(fresh: str, paths: Iterable[str]) -> set[str]:
    """The paths that the pattern `fresh` matches; UserError if it matches none."""
    new = {path for path in paths if fresh and re.search(fresh, _name(path))}
    if fresh and not new:
        names = [_name(path) for path in paths]
        raise UserError(
            f"start.fresh is {fresh!r}, which matches no parameter's path; there are {names[0]}, {names[-1]}."
        )
    return new


def _made(program: Program, mesh: Mesh, shapes: tuple[dict, dict], paths: Set[str]) -> dict[str, jax.Array]:
    """Newly initialised parameters and buffers of these paths, sharded over the mesh."""
    if not paths:
        return {}
    axes = program.axes, program.buffer_axes
    at = tree.by_path(tuple(map(functools.partial(rules.shardings, mesh), axes, shapes)))

    def make():
        return {path: leaf for path, leaf in tree.by_path(program.make_parameters()).items() if path in paths}

    return jax.jit(make, out_shardings={path: at[path] for path in paths})()


def _name(path: str) -> str:
    """The name of a parameter or buffer, from a path that begins with its index in (params, buffers)."""
    return path.partition("/")[2]


def _check(setup: Setup, found: Trained, path: str, here, there):
    shapes = [None if leaf is None else leaf.shape for leaf in (here, there)]
    because = _different(setup, found) or "the names of layers differ"
    otherwise = f"set start.fresh to a pattern that matches {_name(path)}"
    check_shape(setup, _name(path), *shapes, because, otherwise)


def check_shape(setup: Setup, name: str, here: tuple | None, there: tuple | None, because: str, otherwise: str):
    """UserError if the shape of an array here is not that in the checkpoint, where None stands for its absence."""
    if here is not None and here == there:
        return
    sizes = ["has none" if shape is None else f"has {shape}" for shape in (there, here)]
    raise UserError(
        f"{name} does not fit: {setup.experiment.start.checkpoint} {sizes[0]} and this model {sizes[1]}; there "
        f"{because}.  Make them equal, or {otherwise}."
    )


def _different(setup: Setup, found: Trained) -> str:
    """The model settings in which the checkpoint differs: "model.vocab_size is 4096 and here 400"; "" if none."""
    if found.config is None:
        return ""
    here, there = (flatten(dataclasses.asdict(config), "model.") for config in (setup.task.model, found.config))
    return differences(here, there)


def differences(here: dict, there: dict) -> str:
    """The settings whose values differ, as in `_different`."""
    there = dict.fromkeys(here, "absent") | there
    differ = (key for key in here if here[key] != there[key])
    return ", ".join(f"{key} is {shown(there[key])} and here {shown(here[key])}" for key in differ)


def check_tokenizer(setup: Setup):
    """UserError if the checkpoint's embedding is used with a tokenizer other than its own."""
    start, ours = setup.experiment.start, setup.task.tokenizer
    if ours is None or (start.fresh and re.search(start.fresh, "embedding")):
        return
    if ours.differs_from_that_in(start.checkpoint):
        otherwise = (
            f"set data.tokenizer={Path(start.checkpoint) / TOKENIZER}, or begin with new embeddings: "
            'start.fresh="embedding|^head$".'
            if setup.experiment.family == "language_model"
            else "begin with new embeddings, by start.fresh=embedding, or from a run on the same training texts."
        )
        raise UserError(f"{start.checkpoint} was trained with another tokenizer; {otherwise}")


def of_other_data(setup: Setup) -> Iterator[str]:
    """Yields how a hybrid network's earlier data differs from this run's: in names and in scaling.

    UserError if it has the same names in another order: weights would meet other columns than they have learned from.
    """
    start = setup.experiment.start
    if setup.experiment.family != "supervised" or not (Path(start.checkpoint) / dataset_record.DATASET_FILE).exists():
        return
    known, dataset = dataset_record.read(Path(start.checkpoint)), setup.task.dataset
    new_head = start.fresh and re.search(start.fresh, "head")
    for name, key in dataset_record.NAMED.items():
        there, here = getattr(known, name), getattr(dataset, name)
        if there == here or (new_head and name != "names"):
            continue
        if sorted(there) == sorted(here):
            otherwise = "" if name == "names" else ", or begin with a new head, by start.fresh=head"
            raise UserError(
                f"{start.checkpoint} was trained with the {key} {', '.join(there)}, which are in another order here; "
                f"give dataset.columns.{key} in that order{otherwise}."
            )
        yield f"the {key} are {reprlib.repr(there)} and here {reprlib.repr(here)}"
    if not dataset_record.alike(known.scaling, dataset.scaling):
        yield "data was standardised by other means and deviations"
