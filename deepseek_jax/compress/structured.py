"""Structured pruning methods: remove heads, hidden or recurrent units, or channels, so that arrays really shrink."""

from collections.abc import Callable

import jax
from flax import nnx

from deepseek_jax.compress import cuts, decoder_cuts, hybrid_cuts, source
from deepseek_jax.compress.config import PruneConfig
from deepseek_jax.compress.removal import Moments, Removed
from deepseek_jax.errors import UserError
from deepseek_jax.models import tree
from deepseek_jax.models.decoder import Decoder
from deepseek_jax.models.hybrid.network import Hybrid
from deepseek_jax.train.checkpoints.restore import Trained

FINDERS = {  # (config, arrays by path, share to remove) -> (the smaller config, the cuts that lead to it)
    "language_model": {
        "heads": decoder_cuts.heads,
        "hidden": decoder_cuts.hidden,
        "expert-hidden": decoder_cuts.expert_hidden,
    },
    "supervised": {"heads": hybrid_cuts.heads, "units": hybrid_cuts.units, "channels": hybrid_cuts.channels},
}


def remover(kind: str) -> Callable[[Trained, PruneConfig, Moments], Removed]:
    """A function that removes units of this kind: in each layer those that contribute least (`cuts.importance`)."""

    def remove(given: Trained, settings: PruneConfig, moments: Moments) -> Removed:
        model, found = _cuts(kind, given, settings.sparsity)
        flat = cuts.arrays(given)
        choices = [(cut, cuts.strongest(cuts.importance(cut, flat, moments), cut.keep)) for cut in found]
        removed = cuts.remove(source.with_sections(given), model, choices)
        _check_shapes(kind, removed.source)
        return removed

    return remove


def _check_shapes(kind: str, smaller: Trained):
    """UserError if the smaller model has an array of another shape: one that should have been cut but is in no cut."""
    make, file = (Hybrid, "hybrid") if smaller.experiment.family == "supervised" else (Decoder, "decoder")
    abstract = jax.eval_shape(lambda: make(smaller.config, rngs=nnx.Rngs(params=0)))
    _, params, buffers = tree.split(abstract)
    found = cuts.arrays(smaller)
    for path, needed in (tree.flatten(params) | tree.flatten(buffers)).items():
        if found[path].shape != needed.shape:
            raise UserError(
                f"{kind} cannot be removed: {path} would keep the shape {found[path].shape}, and the smaller model "
                f"needs {needed.shape}; add it to deepseek_jax/compress/{file}_cuts.py."
            )


def checker(kind: str) -> Callable[[Trained, PruneConfig], object]:
    """A function that raises UserError if the model has no units of this kind, or none would go at this sparsity."""
    return lambda given, settings: _cuts(kind, given, settings.sparsity)


def _cuts(kind: str, given: Trained, share: float):
    try:
        return _found(kind, given, share)
    except UserError as refused:
        others = [each for each in FINDERS[given.experiment.family] if each != kind and _can_go(each, given, share)]
        instead = f"{', '.join(others)} or single weights" if others else "single weights"
        raise UserError(f"{refused}.  Prune {instead} instead.") from None


def _found(kind: str, given: Trained, share: float):
    """(the smaller config, its cuts); UserError, its text without a full stop, if there is nothing to remove."""
    finders = FINDERS[given.experiment.family]
    if kind not in finders:
        raise UserError(f"--method {kind} does not apply to {given.directory}")
    model, found = finders[kind](given.config, cuts.arrays(given), share)
    if not found:
        raise UserError(f"{given.directory} has no {kind} to remove")
    if model == given.config:
        raise UserError(f"--sparsity {share} removes none of the {kind}, which are removed whole")
    return model, found


def _can_go(kind: str, given: Trained, share: float) -> bool:
    try:
        _found(kind, given, share)
    except UserError:
        return False
    return True
