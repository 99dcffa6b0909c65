"""One-shot pruning: makes a smaller model from a trained one, measures the loss, and writes a report (pruning.html)."""

import dataclasses
from pathlib import Path

from rich.console import Console

from deepseek_jax.compress import experts, report, source, structured, weights
from deepseek_jax.compress.calibrate import input_sums
from deepseek_jax.compress.config import METHOD_NAMES, UNITS, PruneConfig, removed_by
from deepseek_jax.compress.measure import Measure
from deepseek_jax.compress.removal import Method, Removed
from deepseek_jax.errors import UserError
from deepseek_jax.train.checkpoints.restore import Trained

METHODS = {
    "magnitude": Method(weights.remove),
    "wanda": Method(weights.remove, calibrated=True, check=weights.check_weighed),
    **{kind: Method(structured.remover(kind), calibrated=True, check=structured.checker(kind)) for kind in UNITS},
    "experts": Method(experts.drop, calibrated=True, check=experts.check),
    "merge-experts": Method(experts.merge, calibrated=True, check=experts.check),
}
assert tuple(METHODS) == METHOD_NAMES  # listed separately so that the command line need not import this module


def prune(
    given: Trained,
    target: Path,
    method: str,
    settings: PruneConfig,
    *,
    curve: list[float],
    early: Trained | None,
    batches: int,
    console: Console,
) -> Removed:
    """Prunes `given` by `method`, writes the run directory `target` and returns the pruned model.

    The loss on `batches` validation batches is measured at `settings.sparsity` and at each sparsity of `curve`; equally
    many training batches are used for calibration.  `early`: the same run at an earlier step; the masks are applied to
    its weights, and the losses are of the result.  An N:M pattern fixes the sparsity, so `curve` is ignored.
    """
    if settings.pattern:
        settings, curve = dataclasses.replace(settings, sparsity=removed_by(settings.pattern)), []
    of_shares = [dataclasses.replace(settings, sparsity=share) for share in sorted({settings.sparsity, *curve})]
    for each in of_shares:
        METHODS[method].check(given, each)
    measure = Measure(given, console)
    moments = input_sums(measure, given, batches) if METHODS[method].calibrated else None
    losses = {0.0: _loss(measure, early or given, batches)}
    for each in of_shares:
        removed = METHODS[method].remove(given, each, moments)
        if early:
            removed = dataclasses.replace(removed, source=weights.on_early(removed.source, early))
        smaller, share = removed.source, removed.share
        of_size = measure if smaller.config == given.config else Measure(smaller)  # prints no data messages again
        losses[share] = _loss(of_size, smaller, batches)
        console.print(f"{share:.0%} removed: validation loss {losses[share]:.4f}, before {losses[0.0]:.4f}")
        if each == settings:
            wanted = removed
    source.write(target, wanted.source)
    report.write(target, method, losses, wanted.share, wanted.left)
    return wanted


def _loss(measure: Measure, of: Trained, batches: int) -> float:
    scores = measure.scores(of.params, of.buffers, batches, "val")
    if not scores:
        raise UserError(
            "nothing is held out to measure the loss on: data.held_out or dataset.val comes to no record; raise it."
        )
    return scores["loss"]
