"""Models written in the quantised formats that DeepSeek publishes are read back as the rounded weights, exactly."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from deepseek_jax.api import from_pretrained
from deepseek_jax.compress import release
from deepseek_jax.compress.release import IN_BFLOAT16
from deepseek_jax.convert.tensors import Tensors
from deepseek_jax.errors import UserError
from deepseek_jax.models.tree import flatten
from deepseek_jax.views import rounding
from deepseek_jax.views.matrices import LINEAR, matrix_of
from deepseek_jax.views.rounding import Format
from tests.compress.sources import source_of
from tests.parallel.curves import MODELS

rounded = jax.jit(rounding.rounded, static_argnums=1)
V3 = dataclasses.replace(MODELS["v3"], num_hidden_layers=2, hidden_size=160, num_attention_heads=4, v_head_dim=40)
V4 = dataclasses.replace(MODELS["v4"], moe_intermediate_size=64)


@pytest.mark.parametrize(
    ("kind", "model"),
    [
        pytest.param("fp8", V3, id="v3"),
        pytest.param("fp8", V4, id="v4", marks=pytest.mark.slow),
        pytest.param("fp4", V4, id="v4-fp4", marks=pytest.mark.slow),
    ],
)
def test_from_pretrained_reads_the_rounded_weights(kind, model, tmp_path):
    given = source_of(model)
    release.save(tmp_path, model, given.params, given.buffers, kind)
    read, v4 = from_pretrained(tmp_path), bool(model.hc_mult)
    assert jax.tree.structure((read.params, read.buffers)) == jax.tree.structure((given.params, given.buffers))
    types = set()
    for path, leaf in flatten(given.params).items():
        matrix = matrix_of(path, leaf.ndim)
        if matrix and matrix.kind == LINEAR and not IN_BFLOAT16.search(path):
            fp4 = kind == "fp4" and "/experts/" in path
            form = Format("fp4") if fp4 else Format("fp8", powers=v4)
            types.add(form.kind)
            if not path.endswith("out_down"):  # in the release its groups share FP8 blocks
                leaf = rounded(matrix.fold(leaf), form).reshape(leaf.shape)
            else:
                joined = np.moveaxis(np.asarray(leaf), -3, -2).reshape(*leaf.shape[:-3], leaf.shape[-2], -1)
                new = rounded(joined, form).reshape(*leaf.shape[:-3], leaf.shape[-2], leaf.shape[-3], leaf.shape[-1])
                leaf = np.moveaxis(np.asarray(new), -2, -3)
        np.testing.assert_array_equal(flatten(read.params)[path], leaf, err_msg=path)
    assert types == {"fp8", kind}
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["quantization_config"]["weight_block_size"] == [128, 128]


def test_the_release_file_holds_fp8_and_scales(tmp_path):
    given = source_of(V3)
    release.save(tmp_path, V3, given.params, given.buffers, "fp8")
    tensors = Tensors(tmp_path)
    name = "model.layers.0.self_attn.o_proj.weight"
    assert tensors._entries[name].dtype.name == "float8_e4m3fn"
    assert tensors._entries[f"{name}_scale_inv"].shape == (2, 2) and tensors._entries[name].shape == (160, 160)
    assert tensors._entries["model.embed_tokens.weight"].dtype == np.float32


def test_fp4_is_refused_before_v4(tmp_path):
    given = source_of(V3)
    with pytest.raises(UserError, match="FP4 is only for V4's experts; --weights fp8"):
        release.save(tmp_path, V3, given.params, given.buffers, "fp4")


def test_fp4_of_an_odd_width_is_refused(tmp_path):
    given = source_of(dataclasses.replace(V4, moe_intermediate_size=33, num_nextn_predict_layers=0))
    with pytest.raises(UserError, match="w2.weight has 33 columns, and FP4 packs two per byte; --weights fp8"):
        release.save(tmp_path / "out", given.config, given.params, given.buffers, "fp4")
    assert not (tmp_path / "out").exists()
