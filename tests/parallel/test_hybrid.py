"""The hybrid network on several devices computes what it does on one: outputs, gradients, batch norms, loss curves."""

import numpy as np
import pytest

from tests import call
from tests.parallel import hybrids


@pytest.mark.slow
def test_the_hybrid_network_on_eight_devices_computes_what_one_does(on_devices):
    on_devices(8, hybrids.on_several_devices)


def test_the_hybrid_network_on_four_devices_computes_what_one_does(on_devices):
    """A table, whose network compiles fastest; the others are slow tests."""
    on_devices(4, hybrids.on_several_devices)


@pytest.mark.slow
def test_the_loss_falls_on_eight_devices_as_on_one(on_devices):
    one = on_devices(1, hybrids.losses, {"data": 1})
    assert one[-1] < one[0] - 0.5
    np.testing.assert_allclose(on_devices(8, hybrids.losses, {"data": 4, "tensor": 2}), one, rtol=1e-4)


def test_a_context_axis_is_refused_for_the_hybrid_network(run_python):
    result = run_python(*call.words(hybrids.losses, {"data": 1, "context": 2}), devices=2)
    assert "mesh.context is 2; it splits sequences of tokens" in result.stderr
