"""Scores of edited models."""

import dataclasses

import jax

from deepseek_jax.compress.config import PruneConfig
from deepseek_jax.models.decoder import initialise
from deepseek_jax.studies.measuring import held_out_scores
from deepseek_jax.studies.outcome import Trained
from tests.train import tiny


def test_an_edited_model_is_scored_without_what_its_training_kept(tmp_path):
    base = tiny.experiment(tmp_path)
    pruned = dataclasses.replace(base, prune=PruneConfig(method="magnitude"))
    model = initialise(base.model, jax.random.key(0))
    plain, found = (held_out_scores(Trained(each, tmp_path, *model)) for each in (base, pruned))
    assert found == plain and found["final/loss"] > 0
