"""What a run begins from: a model of its own making, or one that was trained before, with some of it left new."""

import dataclasses
import functools
import re
import reprlib
from collections.abc import Callable, Iterable, Iterator, Set
from pathlib import Path

import jax
from jax.sharding import Mesh

from deepseek_jax.config import AnyExperiment, TrainConfig
from deepseek_jax.data.tokenizer import TOKENIZER
from deepseek_jax.errors import UserError
from deepseek_jax.fields import flatten
from deepseek_jax.models import tree
from deepseek_jax.parallel import rules
from deepseek_jax.train import any_checkpoint, known_set
from deepseek_jax.train.any_checkpoint import Found
from deepseek_jax.train.program import Program
from deepseek_jax.train.setup import Setup
from deepseek_jax.train.state import State, make_state


def check(experiment: AnyExperiment):
    """UserError for settings of a new run that would do nothing.  Runs that were begun with such are still read."""
    start, train, default = experiment.start, experiment.train, TrainConfig()
    for name in ("fresh", "best"):
        if getattr(start, name) and not start.checkpoint:
            raise UserError(
                f"start.{name} is of start.checkpoint, which is empty; name one, or leave start.{name} out."
            )
    for name in ("ramp_fraction", "ramp_stages"):
        if getattr(train, name) != getattr(default, name) and not train.ramp_start:
            raise UserError(
                f"train.{name} is {getattr(train, name)} and train.ramp_start 0, so that the batch does not grow; set "
                f"train.ramp_start, or leave train.{name} out."
            )


def first_state(setup: Setup, say: Callable[[str], None]) -> State:
    """The state before the first step, as the experiment's `start` has it; `say` is told what is worth knowing of it.

    Raises UserError where the network could not learn, and where the checkpoint does not fit the model: it names the
    first parameter that is missing, of another shape or left over, and the settings that differ.
    """
    start, model = setup.experiment.start, None
    setup.task.check_new()
    if start.checkpoint:
        found = any_checkpoint.read(Path(start.checkpoint), lambda _: setup.mesh, best=start.best)
        if found.family != setup.experiment.family:
            raise UserError(f"start.checkpoint is {start.checkpoint}, a model of the family {found.family}.")
        model = _fitted(setup, found)
        _check_tokenizer(setup)
        if different := ", ".join(filter(None, (_different(setup, found), *_of_other_data(setup)))):
            say(f"beginning from {start.checkpoint}, where {different}")
    elif setup.experiment.prune.method == "zeros":
        raise UserError("prune.method is zeros, but there is no start.checkpoint whose zeros could stay; name one.")
    return make_state(setup.program, setup.optimizer, setup.abstract, model)


def _fitted(setup: Setup, found: Found) -> tuple[dict, dict]:
    """(params, buffers) of the run's model: the checkpoint's, or new where start.fresh is found in the path."""
    own = setup.program.model or setup.program
    shapes = jax.eval_shape(own.make_parameters)
    ours, theirs = tree.by_path(shapes), tree.by_path((found.params, found.buffers))
    new = _new_paths(setup.experiment.start.fresh, ours | theirs)
    if found.config is None:  # a part of a network: what it does not hold is new, what it holds beyond is left
        new |= ours.keys() ^ theirs.keys()
    for path in ours | theirs:
        if path not in new:
            _check(setup, found, path, ours.get(path), theirs.get(path))
    taken = theirs | _made(own, setup.mesh, shapes, new & ours.keys())
    return jax.tree_util.tree_map_with_path(lambda path, _: taken[tree.path_of(path)], shapes)


def _new_paths(fresh: str, paths: Iterable[str]) -> set[str]:
    """Those in which the pattern `fresh` is found; UserError where it is found in none."""
    new = {path for path in paths if fresh and re.search(fresh, _name(path))}
    if fresh and not new:
        names = [_name(path) for path in paths]
        raise UserError(
            f"start.fresh is {fresh!r}, which is found in no parameter's path; there are {names[0]}, {names[-1]}."
        )
    return new


def _made(program: Program, mesh: Mesh, shapes: tuple[dict, dict], paths: Set[str]) -> dict[str, jax.Array]:
    """The parameters and buffers of these paths as a run of its own would begin with, where they are to lie."""
    if not paths:
        return {}
    axes = program.axes, program.buffer_axes
    at = tree.by_path(tuple(map(functools.partial(rules.shardings, mesh), axes, shapes)))

    def make():
        return {path: leaf for path, leaf in tree.by_path(program.make_parameters()).items() if path in paths}

    return jax.jit(make, out_shardings={path: at[path] for path in paths})()


def _name(path: str) -> str:
    """Of a parameter or a buffer, whose path begins with its place in (params, buffers)."""
    return path.partition("/")[2]


def _check(setup: Setup, found: Found, path: str, here, there):
    if here is not None and there is not None and here.shape == there.shape:
        return
    sizes = ["has none" if leaf is None else f"has {leaf.shape}" for leaf in (there, here)]
    directory, name = setup.experiment.start.checkpoint, _name(path)
    because = _different(setup, found) or "the names of layers differ"
    raise UserError(
        f"{name} does not fit: {directory} {sizes[0]} and this model {sizes[1]}; there {because}.  Make them equal, or "
        f"set start.fresh to a pattern that is found in {name}."
    )


def _different(setup: Setup, found: Found) -> str:
    """The settings of the model that the checkpoint has otherwise: "model.vocab_size is 4096 and here 400"."""
    if found.config is None:
        return ""
    here, there = (flatten(dataclasses.asdict(config), "model.") for config in (setup.task.model, found.config))
    return ", ".join(f"{key} is {there[key]} and here {here[key]}" for key in here if here[key] != there[key])


def _check_tokenizer(setup: Setup):
    """An embedding is of no use to a text that is encoded otherwise."""
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


def _of_other_data(setup: Setup) -> Iterator[str]:
    """What a hybrid network's data was called and standardised by, where that is not so here.

    UserError where it is the same in another order: weights would meet what others have learned from.
    """
    start = setup.experiment.start
    if setup.experiment.family != "supervised" or not (Path(start.checkpoint) / known_set.FILE).exists():
        return
    known, dataset = known_set.read(Path(start.checkpoint)), setup.task.dataset
    new_head = start.fresh and re.search(start.fresh, "head")
    for name, key in known_set.NAMED.items():
        there, here = getattr(known, name), getattr(dataset, name)
        if there == here or (new_head and name != "names"):
            continue
        if sorted(there) == sorted(here):
            otherwise = "" if name == "names" else ", or begin with a new head, by start.fresh=head"
            raise UserError(
                f"{start.checkpoint} was trained with the {key} {', '.join(there)}, which stand in another order here; "
                f"give dataset.columns.{key} in that one{otherwise}."
            )
        yield f"the {key} are {reprlib.repr(there)} and here {reprlib.repr(here)}"
    if not known_set.alike(known.scaling, dataset.scaling):
        yield "data was standardised by other means and deviations"
