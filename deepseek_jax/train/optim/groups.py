"""Groups of parameters, selected by path, with factors on learning rate and weight decay: "head lr=10 decay=0"."""

import jax

from deepseek_jax.checking import parameter_group
from deepseek_jax.errors import UserError
from deepseek_jax.parallel.logical import path_of


def check(groups: tuple[str, ...], params):
    """UserError if a group's pattern matches no path of `params`, the trained parameters."""
    paths = [path_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for pattern, _ in map(parameter_group, groups):
        if not any(pattern.search(path) for path in paths):
            raise UserError(
                f"optimizer.groups has {pattern.pattern!r}, which matches no trained parameter's path; there are "
                f"{paths[0]}, {paths[-1]}."
            )


def factors(groups: tuple[str, ...], kind: str, params):
    """A tree like `params` of factors on the learning rate (`kind` "lr") or the weight decay ("decay"), 1 by default.

    A group's pattern is a regular expression, searched for in paths such as "layers/1-3/attention/out"; of several
    groups that match and set this factor, the last one wins.
    """
    parsed = [parameter_group(group) for group in groups]

    def of(path, _):
        found = [given[kind] for pattern, given in parsed if kind in given and pattern.search(path_of(path))]
        return found[-1] if found else 1.0

    return jax.tree_util.tree_map_with_path(of, params)
