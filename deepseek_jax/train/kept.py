"""The compiled step and score of a run; for a study, kept for runs that differ from it in their seed alone.

Tracing a small model takes as long as many of its steps, and a study trains each variant with several seeds.  Elsewhere
nothing is kept: the same experiment means another program where somebody has changed a function in between.
"""

import collections
import dataclasses
from collections.abc import Callable

from deepseek_jax.parallel import processes
from deepseek_jax.train.setup import Setup
from deepseek_jax.train.views import views_of

MOST = 8  # kept; the one that was not used for longest goes first
_kept: collections.OrderedDict = collections.OrderedDict()


def programs(setup: Setup) -> tuple[Callable, Callable]:
    """As `made`, or those of an earlier run of this process.

    The seed decides what parameters begin as and which data is read, and is in neither, unless the program draws from
    it.  The same experiment may mean another program: its text may have changed, and a part of one's own that it names.

    What views keep of a run may be part of its programs, so theirs are not shared.
    """
    experiment, program = setup.experiment, setup.program
    if views_of(experiment):
        return made(setup)
    seed = experiment.train.seed if program.draws else 0
    seeded = dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, seed=seed))
    key = seeded, setup.mesh, program.graphdef, program.made_of
    if key not in _kept:
        _kept[key] = made(setup)
        while len(_kept) > MOST:
            _kept.popitem(last=False)
    _kept.move_to_end(key)
    return _kept[key]


def made(setup: Setup) -> tuple[Callable, Callable]:
    """(step, score), jitted."""
    return processes.compiled_by_all(setup.compiled_step()), processes.compiled_by_all(setup.compiled_score())
