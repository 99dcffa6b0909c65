"""The compiled step and score of a run; in a study, shared by runs that differ only in their seed.

Tracing a small model takes as long as many of its steps, and a study trains each variant with several seeds.  Outside
studies nothing is cached: equal experiments mean different programs if a function has been changed in between.
"""

import collections
import dataclasses
from collections.abc import Callable

from deepseek_jax.parallel import processes
from deepseek_jax.train.setup import Setup
from deepseek_jax.train.views import views_of

# Programs kept; the least recently used is dropped first.  A study trains all variants with one seed, then with the
# next: with more variants than this, every program would be dropped before its next use.
MOST = 24
_cache: collections.OrderedDict = collections.OrderedDict()


def compiled(setup: Setup) -> tuple[Callable, Callable]:
    """(step, score), each compiled when it is first called."""
    return processes.compiled_by_all(setup.compiled_step()), processes.compiled_by_all(setup.compiled_score())


def cached(setup: Setup) -> tuple[Callable, Callable]:
    """As `compiled`, or the functions of an earlier run of this process whose program is the same.

    The seed decides the initial parameters and the order of the data, which are not part of a program, so it is ignored
    unless the program draws random numbers.  Equal experiments may still differ in program: the corpus behind a path,
    or a registered objective or router, may have changed.

    Views may close over values of their own run, so runs with views share no programs.
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
