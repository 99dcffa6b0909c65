"""Copying in strips equals numpy's copies for any memory order, dtype and width of the last strip."""

import ml_dtypes
import numpy as np
import pytest

from deepseek_jax.convert.copying import contiguous, copy

GIVEN = np.random.default_rng(0).normal(size=(37, 3, 41)).astype(np.float32)
ORDERS = [(0, 1, 2), (2, 1, 0), (1, 2, 0), (2, 0, 1)]


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.int8])
@pytest.mark.parametrize("order", ORDERS)
def test_copy_into_one_entry_of_a_stack(order, dtype):
    given = GIVEN.transpose(order)
    into = np.zeros((2, *given.shape), dtype)
    copy(into, (1,), given)
    np.testing.assert_array_equal(into[1], given.astype(dtype))
    assert not into[0].any()


@pytest.mark.parametrize("given", [*(GIVEN.transpose(order) for order in ORDERS), GIVEN[0].T, GIVEN[0, 0, ::2]])
def test_contiguous_copies_only_where_needed(given):
    copied = contiguous(given)
    assert copied.flags.c_contiguous and (copied is given) == given.flags.c_contiguous
    np.testing.assert_array_equal(copied, given)
