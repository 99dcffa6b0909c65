"""Finds where a number stopped being finite: the first operation that turns finite inputs into NaN or infinity.

The function's jaxpr is run one operation at a time, loops and calls as wholes; the first one whose output is not finite
is opened and searched in turn, a scan iteration by iteration, until a single operation is left.  In a scan over stacked
layers, the iteration is the layer.
"""

import dataclasses
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.extend import core, source_info_util

from deepseek_jax.parallel.logical import path_of

NAMELESS = re.compile(r"(?:jvp|transpose|vmap|rematted_computation|checkpoint)\b|[()]")


@dataclasses.dataclass(frozen=True)
class Origin:
    """`scope`: path of named scopes, such as layers[2]/mla; `operation`: a JAX primitive; `source`: file:line, or "" if
    JAX does not know it."""

    scope: str
    operation: str
    source: str

    def __str__(self):
        return f"{self.operation} in {self.scope or 'the loss'}" + (f" ({self.source})" if self.source else "")


def bad(array) -> bool:
    """Whether there is NaN or +inf.  -inf does not count: masked scores hold it before a softmax."""
    if not jnp.issubdtype(array.dtype, jnp.floating):
        return False
    return bool(jnp.any(jnp.isnan(array) | (array == jnp.inf)))


def bad_parameter(params) -> str | None:
    """Name of the first parameter that is not finite, with the index in its first dimension (in a stack, the layer)."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if bad(leaf):
            name = path_of(path)
            index = next(i for i in range(leaf.shape[0]) if bad(leaf[i])) if leaf.ndim else ""
            return f"{name}[{index}]"
    return None


def find_origin(function: Callable, *args) -> Origin | None:
    """The first operation in `function(*args)` that turns finite inputs into NaN or +inf; None if none does."""
    closed = jax.make_jaxpr(function)(*args)
    return _search(closed, jax.tree.leaves(args), scope=())


def _search(closed: core.ClosedJaxpr, args: list, scope: tuple[str, ...]) -> Origin | None:
    jaxpr = closed.jaxpr
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*closed.consts, *args]))
    for eqn in jaxpr.eqns:
        inputs = [var.val if isinstance(var, core.Literal) else values[var] for var in eqn.invars]
        outputs = _run(jaxpr, eqn, inputs)
        if any(map(bad, outputs.values())):
            return _open(eqn, inputs, scope)
        values.update(outputs)
    return None


def _run(jaxpr: core.Jaxpr, eqn, inputs: list) -> dict:
    """Evaluates one equation of `jaxpr` by itself: {output variable: array}."""
    given = {var: value for var, value in zip(eqn.invars, inputs) if not isinstance(var, core.Literal)}
    wanted = [var for var in eqn.outvars if not isinstance(var, core.DropVar)]
    debug_info = jaxpr.debug_info.with_unknown_names()
    alone = core.Jaxpr((), list(given), wanted, [eqn], eqn.effects, debug_info)
    return dict(zip(wanted, core.jaxpr_as_fun(core.ClosedJaxpr(alone, ()))(*given.values())))


def _open(eqn, inputs: list, scope: tuple[str, ...]) -> Origin:
    """The origin inside an equation whose output is bad: in its body if that can be searched, else the equation."""
    names = NAMELESS.sub("", str(eqn.source_info.name_stack)).strip("/")
    scope = (*scope, names) if names else scope
    body = next((eqn.params[key] for key in ("jaxpr", "call_jaxpr") if key in eqn.params), None)
    inner = None
    if eqn.primitive.name == "scan":
        inner = _search_scan(eqn, inputs, scope or ("scan",))
    elif body is not None and eqn.primitive.name not in ("while", "shard_map"):
        closed = body if isinstance(body, core.ClosedJaxpr) else core.ClosedJaxpr(body, ())
        inner = _search(closed, inputs, scope)
    return inner or Origin("/".join(scope), eqn.primitive.name, source_info_util.summarize(eqn.source_info))


def _search_scan(eqn, inputs: list, scope: tuple[str, ...]) -> Origin | None:
    body = eqn.params["jaxpr"]
    # The inputs are constants, carry and sequences, in this order; a sequence loses its first dimension in the body.
    sliced = [outer.aval.ndim > inner.aval.ndim for outer, inner in zip(eqn.invars, body.jaxpr.invars)]
    carried = sum(outer.aval.ndim == inner.aval.ndim for outer, inner in zip(eqn.outvars, body.jaxpr.outvars))
    start = len(inputs) - sum(sliced) - carried
    run = jax.jit(core.jaxpr_as_fun(body))
    order = range(eqn.params["length"])
    for index in reversed(order) if eqn.params["reverse"] else order:
        given = [value[index] if cut else value for value, cut in zip(inputs, sliced)]
        outputs = run(*given)
        if any(map(bad, outputs)):
            return _search(body, given, (*scope[:-1], f"{scope[-1]}[{index}]"))
        inputs = [*inputs[:start], *outputs[:carried], *inputs[start + carried :]]
    return None
