"""Removing the routed experts that contribute least, or merging them into those that stay.

An expert's contribution, its load times the size of its output, is measured as the energy of its down projection's
output over the calibration tokens, each weighted by the router.

L layers of a stack  E experts  I expert width  D model
"""

import dataclasses

import numpy as np
from scipy.optimize import linear_sum_assignment

from deepseek_jax.compress import cuts, source
from deepseek_jax.compress.config import PruneConfig
from deepseek_jax.compress.cuts import Cut, plain
from deepseek_jax.compress.removal import Moments, Removed
from deepseek_jax.errors import UserError
from deepseek_jax.models.checks import WITHOUT_GROUPS
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.train.checkpoints.restore import Trained

KERNELS = "gate", "up", "down"


def drop(given: Trained, settings: PruneConfig, moments: Moments) -> Removed:
    """Removes equally many experts from each of the router's groups, so that the groups stay equally large."""
    return _removed(given, settings, moments, merge=False)


def merge(given: Trained, settings: PruneConfig, moments: Moments) -> Removed:
    """Averages each removed expert into the kept one of its group whose router weights are most similar.

    The average is weighted by contribution.  Hidden units are matched first, as permuting an expert's hidden units
    does not change its output (arXiv:2310.01334).
    """
    return _removed(given, settings, moments, merge=True)


def check(given: Trained, settings: PruneConfig) -> ModelConfig:
    """The smaller model's config; UserError if there are no routed experts, or too few would be left."""
    if given.experiment.family != "language_model" or not given.config.num_moe_layers:
        raise UserError(f"{given.directory} has no routed experts; prune heads, hidden units or single weights.")
    return _smaller(given.config, settings.sparsity)


def _removed(given, settings, moments, *, merge) -> Removed:
    config, smaller = given.config, check(given, settings)
    flat, choices, tables, groups = cuts.arrays(given), [], {}, _groups(config)
    for path in sorted(path for path in flat if path.endswith("experts/down")):
        layer = path.removesuffix("experts/down")
        cut = _cut(layer, flat, config.n_routed_experts, smaller.n_routed_experts)
        added_LE = energy(flat[path], moments[path])
        stays_LE = _strongest_of_groups(added_LE, groups, smaller.n_routed_experts)
        heirs_LE = _replacements(flat[layer + "router/kernel"], stays_LE, groups)
        if merge:
            _average(flat, layer, added_LE, heirs_LE)
        if layer + "router/table" in flat:
            tables[layer + "router/table"] = _renumbered(flat[layer + "router/table"], stays_LE, heirs_LE)
        choices.append((cut, stays_LE))
    averaged = cuts.with_arrays(source.with_sections(given), config, flat | tables)
    return cuts.remove(averaged, smaller, choices)


def energy(down: np.ndarray, moments) -> np.ndarray:
    """Each expert's output energy [L, E], from a stack's down projections [L, E, I, D] or one layer's [E, I, D]."""
    I, D = down.shape[-2:]
    flowing = np.asarray(moments, np.float64).reshape(-1, down.shape[-3], I)
    return np.einsum("leid,lei->le", down.astype(np.float64).reshape(*flowing.shape, D) ** 2, flowing)


def _groups(config: ModelConfig) -> int:
    return 1 if config.topk_method in WITHOUT_GROUPS else config.n_group


def _smaller(config: ModelConfig, share: float) -> ModelConfig:
    """The config with `share` of the experts removed; UserError if fewer are left than a token has to choose."""
    groups = _groups(config)
    reached = 1 if groups == 1 else config.topk_group
    size, keep = config.n_routed_experts // groups, cuts.kept(config.n_routed_experts // groups, share)
    if keep == size:
        raise UserError(
            f"--sparsity {share} removes none of {size} experts in each of {groups} groups: one of them is already a "
            f"share of {1 / size:.3g}."
        )
    least = -(-config.num_experts_per_tok // reached)
    if groups > 1 and config.topk_method == "noaux_tc":
        least = max(least, 2)  # a group's score is the sum of its two best experts'
    if keep < least:
        raise UserError(
            f"--sparsity {share} leaves {keep} of {size} experts in each of {groups} groups, but a token takes "
            f"{config.num_experts_per_tok} from {reached}: at most {1 - least / size:.3g} can go."
        )
    return dataclasses.replace(config, n_routed_experts=groups * keep)


def _cut(layer: str, flat, experts: int, keep: int) -> Cut:
    dims = {f"experts/{name}": 0 for name in KERNELS} | {"router/kernel": 1, "router/bias": 0}
    parts = tuple(plain(layer + name, dim, experts) for name, dim in dims.items() if layer + name in flat)
    return Cut(parts, int(layer.startswith("layers/")), keep)


def _strongest_of_groups(added_LE, groups: int, keep: int) -> np.ndarray:
    by_group = added_LE.reshape(-1, added_LE.shape[1] // groups)
    return cuts.strongest(by_group, keep // groups).reshape(added_LE.shape)


def _replacements(router: np.ndarray, stays_LE, groups: int) -> np.ndarray:
    """[L, E]: the expert that replaces each: itself, or the kept one of its group with the closest router column."""
    L, E = stays_LE.shape
    columns = router.reshape(L, -1, E)
    columns = columns / np.maximum(np.linalg.norm(columns, axis=1, keepdims=True), 1e-30)
    alike = np.einsum("lde,ldf->lef", columns, columns)
    group = np.arange(E) // (E // groups)
    allowed = stays_LE[:, None, :] & (group[:, None] == group)
    return np.where(stays_LE, np.arange(E), np.where(allowed, alike, -np.inf).argmax(axis=2))


def _average(flat, layer: str, added_LE, heirs_LE):
    """Replaces each heir in `flat` by the weighted average of the experts that it stands for, itself included."""
    names = [f"{layer}experts/{name}" for name in KERNELS]
    shapes = {name: flat[name].shape for name in names}
    stacked = {name: flat[name].reshape(added_LE.shape + flat[name].shape[-2:]).copy() for name in names}
    for number, heirs in enumerate(heirs_LE):
        for heir in np.unique(heirs):
            members = np.flatnonzero(heirs == heir)
            share = added_LE[number, members]
            share = share / share.sum() if share.sum() else np.full(len(members), 1 / len(members))
            own = [stacked[name][number, heir].copy() for name in names]
            matched = [_matched(own, [stacked[name][number, member] for name in names]) for member in members]
            for name, kernels in zip(names, zip(*matched)):
                stacked[name][number, heir] = sum(part * kernel for part, kernel in zip(share, kernels))
    flat |= {name: stacked[name].reshape(shapes[name]) for name in names}


def _matched(own: list[np.ndarray], other: list[np.ndarray]) -> list[np.ndarray]:
    """gate, up [D, I] and down [I, D] of `other`, with its hidden units permuted to match those of `own` best."""
    alike = own[0].T @ other[0] + own[1].T @ other[1] + own[2] @ other[2].T
    order = linear_sum_assignment(alike, maximize=True)[1]
    return [other[0][:, order], other[1][:, order], other[2][order]]


def _renumbered(table: np.ndarray, stays_LE, heirs_LE) -> np.ndarray:
    """A hash router's token-to-expert table [L, V, K] with every expert replaced by its heir's new number.

    Where two experts of a token have the same heir, the second moves on to the next number not yet taken.
    """
    new_LE = np.cumsum(stays_LE, axis=1) - 1
    keep, found = int(stays_LE[0].sum()), table.reshape(len(stays_LE), *table.shape[-2:]).copy()
    for number in range(len(found)):
        found[number] = new_LE[number][heirs_LE[number]][found[number]]
        for place in range(1, found.shape[2]):
            for _ in range(keep):
                taken = (found[number, :, :place] == found[number, :, place, None]).any(axis=1)
                found[number, :, place] = np.where(taken, (found[number, :, place] + 1) % keep, found[number, :, place])
    return found.reshape(table.shape)
