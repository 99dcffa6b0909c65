"""Results of edits and measures are stored under names that distinguish functions made by one factory."""

import functools

import numpy as np
import pytest

from deepseek_jax.errors import UserError
from deepseek_jax.source_names import source_name
from deepseek_jax.studies import Study, Sweep, Variant
from tests.edits import by_default, scaled, times

LONG = [np.arange(2000.0), np.arange(2000.0)]
LONG[1][1000] = 0  # in the part that numpy's repr abbreviates


@pytest.mark.parametrize(
    "makers",
    [
        [lambda: scaled(0.5), lambda: scaled(0.0), lambda: scaled("0.5")],
        [lambda: scaled(1, times(2)), lambda: scaled(1, times(3))],
        [lambda: by_default(1), lambda: by_default(2)],
        [lambda: scaled(LONG[0]), lambda: scaled(LONG[1])],
    ],
)
def test_functions_of_one_factory_have_distinct_stable_names(makers):
    once, again = ([source_name(make()) for make in makers] for _ in range(2))
    assert once == again and len(set(once)) == len(makers)


def test_names_are_the_same_in_every_process(run_python):
    """Sets are ordered by the hashes of their strings, which differ between processes."""
    edit = "scaled(frozenset('abcdef'), times(2))"
    names = "from deepseek_jax.source_names import source_name; from tests.edits import scaled, times"
    result = run_python("-c", f"{names}; print(source_name({edit}))")
    assert result.stdout.strip() == source_name(scaled(frozenset("abcdef"), times(2))), result.stderr


def test_functions_without_a_stable_name_are_refused():
    settings = {"base": "x.py", "budget": 1}
    study = settings | {"metric": "final/loss", "margin": 1, "claim": "a < b"}

    def variants(edit):
        return [Variant("a"), Variant("b", edit=edit)]

    partial = functools.partial(scaled, 0.5)
    with pytest.raises(UserError, match="functions defined with `def`, but one is functools.partial"):
        Study(**study, variants=variants(partial))
    with pytest.raises(UserError, match="functions defined with `def`"):
        Study(**study, variants=variants(None), measures=[lambda trained: {}])
    with pytest.raises(UserError, match="^edit uses <object object at .*; give it numbers or text."):
        Study(**study, variants=variants(scaled(object())))
    with pytest.raises(TypeError, match="unexpected keyword argument 'measures'"):  # it would show none
        Sweep(**settings, search={"a": [1]}, measures=(partial,))
