"""Expert parallelism gives the outputs and gradients of one device, and reports what it drops."""

import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.parallel.expert import rows_a_device, slots_by_device
from tests.parallel import experts


def test_on_tpus_only_filled_rows_are_sent(on_devices):
    """The ragged all-to-all of TPUs, emulated here, moves what the padded one does, and so does its gradient."""
    found = on_devices(8, experts.ragged)
    assert found["same"] == [True, True] and found["moved"] > 0
    assert found["on tpu"] == [2, 0], "there and back"


def test_experts_on_eight_devices_compute_what_one_does(on_devices):
    on_devices(8, experts.on_eight_devices)


@pytest.mark.slow
def test_int8_scales_are_of_whole_rows_when_rows_are_sharded(on_devices):
    assert max(on_devices(4, experts.int8_errors)) < 1e-3


@pytest.mark.parametrize("factor, rows", [(0.0, (32, False)), (1.0, (17, True)), (9.0, (32, False))])
def test_rows_per_device_are_the_worst_case_or_a_multiple_of_the_mean(factor, rows):
    """16 tokens choose 4 of 8 experts, 2 on each of 4 devices.  Where rows may be dropped, one more row stays empty."""
    assert rows_a_device(16, 4, 2, 4, factor) == rows


def test_large_numbers_of_rows_are_whole_tiles():
    assert rows_a_device(4096, 8, 16, 16, 1.5) == (3072, True)


def test_dropped_assignments_point_at_an_empty_slot():
    slots = slots_by_device(jnp.array([[1, 0], [1, 1]]), devices=2, capacity=3)
    np.testing.assert_array_equal(slots.assignment_of_slot, [1, 4, 4, 0, 2, 4])
    np.testing.assert_array_equal(slots.slot_of_assignment, [[3, 0], [4, 5]])
