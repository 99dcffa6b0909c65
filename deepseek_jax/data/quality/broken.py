"""Records that contain nothing to learn from.

Records that cannot be read or are not finite never get this far: opening the set refuses them.
"""

import re

import numpy as np

from deepseek_jax.data.quality.all_records import AllRecords
from deepseek_jax.data.quality.finding import Finding

_READABLE = re.compile(r"[^\W_]")
_BROKEN = "\ufffd"  # the replacement character that a decoder writes for invalid bytes


def broken(records: AllRecords) -> Finding:
    """Finds pictures and windows of a single value, texts without letters or digits, and texts decoded with losses."""
    reasons = _of_texts(records.inputs) if records.input == "text" else _of_numbers(records)
    listed = list(reasons.items())
    return Finding(
        title="Empty or broken records",
        sentence=f"{len(reasons):,} of {len(records.ids):,} records are empty or broken",
        examples={"": [(place, f"{records.said(place)}: {reason}") for place, reason in listed]} if listed else {},
        doubtful=reasons,
    )


def _of_texts(texts: np.ndarray) -> dict[int, str]:
    reasons = {}
    for place, text in enumerate(texts):
        if not _READABLE.search(text):
            reasons[place] = "no letter or digit"
        elif _BROKEN in text:
            reasons[place] = "characters lost in decoding"
    return reasons


def _of_numbers(records: AllRecords) -> dict[int, str]:
    if records.input == "table":  # equal numbers in all columns may be correct
        return {}
    rows = records.inputs.reshape(len(records.ids), -1)
    return dict.fromkeys(np.flatnonzero(rows.max(1) == rows.min(1)).tolist(), "a single value throughout")
