"""Copies of arrays whose dimensions lie in another order in memory, as a checkpoint's matrices do in ours."""

import numpy as np

LINE = 64  # bytes that a processor fetches at once


def copy(into: np.ndarray, at: tuple[int, ...], given: np.ndarray):
    """into[at] = given, in strips of the last dimension.

    numpy goes through a transposed matrix by its columns and fetches a line for each number: 60 to 90 million numbers a
    second, a third of what strips as wide as a line reach.
    """
    given = given.astype(into.dtype, copy=False)
    if given.ndim < 2 or given.strides[-1] == given.itemsize:
        into[at] = given
        return
    width = LINE // given.itemsize
    for start in range(0, given.shape[-1], width):
        strip = slice(start, start + width)
        into[(*at, ..., strip)] = given[..., strip]


def contiguous(given: np.ndarray) -> np.ndarray:
    """The array with its last dimension innermost in memory; itself where it is so."""
    if given.flags.c_contiguous:
        return given
    copied = np.empty(given.shape, given.dtype)
    copy(copied, (), given)
    return copied
