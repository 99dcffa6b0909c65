"""Expert-specialised fine-tuning: chooses the routed experts that a task uses most (ESFT, arXiv:2407.01906, 3.2).

E experts
"""

import numpy as np

from deepseek_jax.errors import UserError


def choose(shares: dict[int, np.ndarray], threshold: float) -> dict[int, list[int]]:
    """By layer, the fewest experts whose shares [E] (of a sum of 1) together reach `threshold`.

    The paper uses 0.2 for the token share and 0.1 for the gate score.  With fewer experts, each has a larger share.
    """
    if not 0 < threshold <= 1:
        raise UserError(f"the threshold is {threshold}; it is a share of all use, above 0 and at most 1.")
    chosen = {}
    for layer, share_E in shares.items():
        order = np.argsort(-share_E, kind="stable")
        enough = int(np.searchsorted(np.cumsum(share_E[order]), threshold - 1e-9)) + 1
        chosen[layer] = sorted(order[:enough].tolist())
    return chosen


def as_setting(chosen: dict[int, list[int]]) -> str:
    """The chosen experts written as a value of tune.experts.

    >>> as_setting({1: [3, 5], 2: [0]})
    '1: 3 5; 2: 0'
    """
    return "; ".join(f"{layer}: {' '.join(map(str, experts))}" for layer, experts in chosen.items())
