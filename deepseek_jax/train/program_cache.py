"""The compiled step and score of a run; for a study, kept for runs that differ from it in their seed alone.

Tracing a small model takes as long as many of its steps, and a study trains each variant with several seeds.  Elsewhere
nothing is kept: equal experiments mean different programs where somebody has changed a function in between.
"""

import collections
import dataclasses
from collections.abc import Callable

from deepseek_jax.parallel import processes
from deepseek_jax.train.setup import Setup
from deepseek_jax.train.views import views_of

# Kept; the one that was not used for longest goes first.  A study trains seed by seed: of more variants than these none
# would be found again.
MOST = 24
_cache: collections.OrderedDict = collections.OrderedDict()


def compiled(setup: Setup) -> tuple[Callable, Callable]:
    """(step, score), each compiled when it is first called."""
    return processes.compiled_by_all(setup.compiled_step()), processes.compiled_by_all(setup.compiled_score())


def cached(setup: Setup) -> tuple[Callable, Callable]:
    """As `compiled`, or those of an earlier run of this process.

    The seed decides what parameters begin as and which data is read, and is in neither, unless the program draws from
    it.  Equal experiments may differ in program: the corpus behind the path, or a registered objective or router, may
    have changed.

    What views keep of a run may be part of its programs, so theirs are not shared.
    """
    experiment, program = setup.experiment, setup.program
    if views_of(experiment):
        return compiled(setup)
    seed = experiment.train.seed if program.draws else 0
    seeded = dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, seed=seed))
    key = seeded, setup.mesh, program.graphdef, program.made_of
    if key not in _cache:
        _cache[key] = compiled(setup)
        while len(_cache) > MOST:
            _cache.popitem(last=False)
    _cache.move_to_end(key)
    return _cache[key]
