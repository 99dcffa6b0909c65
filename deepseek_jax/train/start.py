"""What a run begins from: a model of its own making, or one that was trained before, with some of it left new."""

import dataclasses
import functools
import re
from collections.abc import Callable
from pathlib import Path

import jax

from deepseek_jax.data.tokenizer import TOKENIZER
from deepseek_jax.errors import UserError
from deepseek_jax.fields import flatten
from deepseek_jax.models import tree
from deepseek_jax.parallel import rules
from deepseek_jax.train import any_checkpoint
from deepseek_jax.train.any_checkpoint import Found
from deepseek_jax.train.setup import Setup
from deepseek_jax.train.state import State, make_state


def first_state(setup: Setup, say: Callable[[str], None]) -> State:
    """The state before the first step, as the experiment's `start` has it; `say` is told what is worth knowing of it.

    Raises UserError where the checkpoint does not fit the model: it names the first parameter that is missing, of
    another shape or left over, and the settings that differ.
    """
    start, model = setup.experiment.start, None
    if start.checkpoint:
        found = any_checkpoint.read(Path(start.checkpoint), lambda _: setup.mesh, best=start.best)
        if found.family != setup.experiment.family:
            raise UserError(f"start.checkpoint is {start.checkpoint}, a model of the family {found.family}.")
        model = _fitted(setup, found)
        _check_tokenizer(setup)
        if different := _different(setup, found):
            say(f"beginning from {start.checkpoint}, where {different}")
    elif setup.experiment.prune.method == "zeros":
        raise UserError("prune.method is zeros, but there is no start.checkpoint whose zeros could stay; name one.")
    return make_state(setup.program, setup.optimizer, setup.abstract, model)


def _fitted(setup: Setup, found: Found) -> tuple[dict, dict]:
    """(params, buffers) of the run's model: the checkpoint's, or new where start.fresh is found in the path."""
    own, mesh, fresh = setup.program.model or setup.program, setup.mesh, setup.experiment.start.fresh
    make, asked = own.make_parameters, lambda path: bool(fresh and re.search(fresh, path.partition("/")[2]))
    # Paths begin with 0 for parameters and 1 for buffers.
    shapes, theirs = jax.eval_shape(make), tree.by_path((found.params, found.buffers))
    ours = tree.by_path(shapes)
    # Of a part of a network: what it does not hold is new, what it holds beyond is left.
    told = ours.keys() & theirs.keys() if found.config is None else ours.keys() | theirs.keys()
    is_fresh = lambda path: asked(path) or path not in told  # noqa: E731
    if fresh and not any(map(asked, ours | theirs)):
        paths = [path.partition("/")[2] for path in ours]
        raise UserError(
            f"start.fresh is {fresh!r}, which is found in no parameter's path; there are {paths[0]}, {paths[-1]}."
        )
    for path in ours | theirs:
        if not is_fresh(path):
            _check(setup, found, path, ours.get(path), theirs.get(path))
    axes = own.axes, own.buffer_axes
    at = tree.by_path(tuple(map(functools.partial(rules.shardings, mesh), axes, shapes)))
    chosen = {path: at[path] for path in ours if is_fresh(path)}
    make_new = jax.jit(
        lambda: {path: leaf for path, leaf in tree.by_path(make()).items() if path in chosen}, out_shardings=chosen
    )
    taken = theirs | (make_new() if chosen else {})
    return jax.tree_util.tree_map_with_path(lambda path, _: taken[tree.path_of(path)], shapes)


def _check(setup: Setup, found: Found, path: str, here, there):
    if here is not None and there is not None and here.shape == there.shape:
        return
    sizes = ["has none" if leaf is None else f"has {leaf.shape}" for leaf in (there, here)]
    directory, name = setup.experiment.start.checkpoint, path.partition("/")[2]
    because = _different(setup, found) or "the names of layers differ"
    raise UserError(
        f"{name} does not fit: {directory} {sizes[0]} and this model {sizes[1]}; there {because}.  Make them equal, or "
        f"set start.fresh to a pattern that is found in {name}."
    )


def _different(setup: Setup, found: Found) -> str:
    """The settings of the model that the checkpoint has otherwise: "model.vocab_size is 4096 and here 400"."""
    model = setup.experiment.model if setup.experiment.family == "language_model" else setup.task.model
    if found.config is None:
        return ""
    here, there = (flatten(dataclasses.asdict(config), "model.") for config in (model, found.config))
    return ", ".join(f"{key} is {there[key]} and here {here[key]}" for key in here if here[key] != there[key])


def _check_tokenizer(setup: Setup):
    """An embedding is of no use to a text that is encoded otherwise."""
    start, of_language = setup.experiment.start, setup.experiment.family == "language_model"
    theirs = Path(start.checkpoint) / TOKENIZER
    ours = setup.task.corpus.tokenizer if of_language else setup.task.dataset.tokenizer
    if ours is None or not theirs.exists() or (start.fresh and re.search(start.fresh, "embedding")):
        return
    if theirs.read_text() != ours.path.read_text():
        otherwise = (
            f'set data.tokenizer={theirs}, or begin with new embeddings: start.fresh="embedding|^head$".'
            if of_language
            else "begin with new embeddings, by start.fresh=embedding, or from a run on the same training texts."
        )
        raise UserError(f"{start.checkpoint} was trained with another tokenizer; {otherwise}")
