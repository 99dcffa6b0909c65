"""Checkpoints in DeepSeek's release format: FP8 e4m3 in blocks of 128 x 128 (V3), FP4 e2m1 for V4's routed experts.

Everything else is not quantised: embedding, head, routers, norms, the projection into MTP modules.

o out  i in
"""

import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jaxtyping import Array

from deepseek_jax.convert import writing
from deepseek_jax.convert.quantised import FP4_BLOCK, FP8_BLOCK
from deepseek_jax.convert.safetensors_file import SAFETENSORS_DTYPES, Output
from deepseek_jax.errors import UserError
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.reporting import Report, no_report
from deepseek_jax.views.matrices import LINEAR, Matrix, matrix_of
from deepseek_jax.views.rounding import Format, pack

IN_BFLOAT16 = re.compile(r"mtp/\d+/project|indexer/weights$|compressor/")  # matrices that releases leave in bfloat16


def save(directory: Path, config: ModelConfig, params: dict, buffers: dict, kind: str, report: Report = no_report):
    """Writes a release that `from_pretrained` reads.  `kind`: "fp8", or "fp4" (routed experts in fp4, others in fp8).

    V4's scales are powers of two (e8m0) under V4's tensor names; those of earlier models are float32.
    """
    v4 = writing.is_v4(config)
    if kind == "fp4" and not v4:
        raise UserError("FP4 is only for V4's experts; --weights fp8 is for V1 to V3.2.")
    quantisation = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"}
    quantisation |= {"weight_block_size": [FP8_BLOCK, FP8_BLOCK]} | ({"scale_fmt": "ue8m0"} if v4 else {})
    values = {"quantization_config": quantisation}
    if kind == "fp4":
        values["expert_dtype"] = "fp4"
    change = functools.partial(_changed, kind, v4)
    spelling = "deepseek" if v4 else "huggingface"
    writing.save(directory, config, params, buffers, spelling=spelling, change=change, values=values, report=report)


def _changed(kind: str, v4: bool, path: str, output: Output) -> list[Output]:
    """The tensors to write for `output`, made from our array at `path`: packed values and scales, or it unchanged."""
    matrix = matrix_of(path, 4)  # with any number of dimensions a vector could not have
    if len(output.shape) != 2 or matrix is None or matrix.kind != LINEAR or IN_BFLOAT16.search(path):
        return [output]
    form = Format("fp4") if kind == "fp4" and "/experts/" in path else Format("fp8", powers=v4)
    values, scales = (functools.partial(_part, output, form, name) for name in ("values", "scales"))
    rows, columns = output.shape
    scale = output.name.removesuffix(".weight") + (".scale" if v4 else ".weight_scale_inv")
    of_scales = SAFETENSORS_DTYPES["F8_E8M0"] if v4 else SAFETENSORS_DTYPES["F32"]
    if form.kind == "fp4":
        if columns % 2:
            raise UserError(
                f"{output.name} has {columns} columns, and FP4 packs two per byte; --weights fp8 takes any."
            )
        blocks = rows, -(-columns // FP4_BLOCK)
        packed = Output(output.name, SAFETENSORS_DTYPES["I8"], (rows, columns // 2), (values,))
    else:
        blocks = -(-rows // FP8_BLOCK), -(-columns // FP8_BLOCK)
        packed = Output(output.name, SAFETENSORS_DTYPES["F8_E4M3"], (rows, columns), (values,))
    return [packed, Output(scale, of_scales, blocks, (scales,))]


def _part(output: Output, form: Format, name: str) -> np.ndarray:
    """The "values" or "scales" in the type that the file stores."""
    part = np.asarray(_packed(output.array(), form, name))
    if form.kind == "fp4":
        return part.view(np.int8) if name == "values" else part.view(ml_dtypes.float8_e8m0fnu)
    return part


@functools.partial(jax.jit, static_argnums=(1, 2))
def _packed(matrix_oi, form: Format, name: str) -> Array:
    """One part of `pack`, compiled by itself so that XLA skips what only the other part needs."""
    return pack(matrix_oi.astype(jnp.float32).T, Matrix(LINEAR, leading=0, inputs=1), form)[name].T
