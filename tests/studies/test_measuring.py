"""Scores and measures of edited models."""

import dataclasses
import types

import jax
import numpy as np

from deepseek_jax.compress.config import ArithmeticConfig, PruneConfig
from deepseek_jax.models.decoder import initialise
from deepseek_jax.studies import measuring
from deepseek_jax.studies.measuring import held_out_scores
from deepseek_jax.studies.study import Variant
from deepseek_jax.train.checkpoints import restore
from deepseek_jax.train.checkpoints.restore import Trained
from deepseek_jax.train.program import language_model_program
from tests.train import tiny


def test_an_edited_model_is_scored_without_its_trainings_view(tmp_path):
    base = tiny.experiment(tmp_path)
    pruned = dataclasses.replace(base, prune=PruneConfig(method="magnitude"))
    _, *model = initialise(base.model, jax.random.key(0))
    plain, found = (held_out_scores(Trained(tmp_path, each, 0, each.model, *model)) for each in (base, pruned))
    assert found == plain and found["final/loss"] > 0


def test_measures_see_the_arithmetic_set_by_an_edit(tmp_path, monkeypatch):
    plain = tiny.experiment(tmp_path)
    fp8 = dataclasses.replace(plain, arithmetic=ArithmeticConfig("fp8"))
    trained = Trained(tmp_path, plain, 0, plain.model, *initialise(plain.model, jax.random.key(0))[1:])
    monkeypatch.setattr(restore, "restore_model", lambda directory: trained)
    variant = Variant("in fp8", edit=lambda experiment, params, buffers: (fp8, params, buffers))
    run = types.SimpleNamespace(directory=tmp_path, variant=variant)
    assert measuring.restore(run).graphdef == language_model_program(fp8, np.ones(1)).graphdef != trained.graphdef
