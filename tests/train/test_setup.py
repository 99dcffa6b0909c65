"""What a loop of one's own takes from a Setup: the inputs of its steps, and held-out scores."""

import jax
import numpy as np
import pytest

from deepseek_jax.train.optim import schedules
from deepseek_jax.train.setup import prepare
from deepseek_jax.train.start import first_state
from tests.train import tiny


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    return prepare(tiny.carrying_all(tmp_path_factory.mktemp("setup")))


def test_the_inputs_of_a_run_grow_with_its_batch_and_end_with_it(setup):
    train, batches = setup.experiment.train, setup.train_batches()
    counts = [schedules.microbatches(train, step) for step in range(train.steps)]
    assert counts[0] < counts[-1]
    for count, given in zip(counts, setup.inputs(), strict=True):
        jax.tree.map(np.testing.assert_array_equal, given, setup.place([next(batches) for _ in range(count)]))


def test_scores_are_those_of_the_split_up_to_a_limit(setup):
    state = first_state(setup)
    model, score = (state["params"], state["buffers"]), setup.compiled_score()
    for limit in (1, 2):
        expected = setup.task.scores(score, *model, setup.held_out_batches("val", limit))
        assert setup.scores(*model, "val", limit) == expected
