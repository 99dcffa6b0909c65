"""What of a layer the backward pass recomputes instead of keeping it (`train.remat`).

none   nothing
dots   all but most matrix products.  Kept are those of projections, gate and up of feed-forwards and experts, the
       output of attention by a TPU's kernel, and what is found by sorting: the chosen experts and the order of rows.
       Recomputed are attention's scores, and the outputs of experts, which are wide: a row for each token and expert.
full   everything from the layer's input on
"""

import jax
from jax.ad_checkpoint import checkpoint_name

KEPT = "kept"

_dots = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
_named = jax.checkpoint_policies.save_only_these_names(KEPT)
POLICIES = {"dots": jax.checkpoint_policies.save_from_both_policies(_dots, _named), "full": None}


def kept(tree):
    """The arrays of `tree`, unchanged, but kept with "dots": for what is not a plain product, as a kernel's result."""
    return jax.tree.map(lambda leaf: checkpoint_name(leaf, KEPT), tree)
