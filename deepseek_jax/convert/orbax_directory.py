"""A model without optimizer state: config.json beside an Orbax checkpoint of its parameters and buffers.

It can be loaded in another dtype, with other shardings and on other devices than it was saved with; each process reads
only its parts.
"""

import logging
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from deepseek_jax.convert import config_json
from deepseek_jax.convert.casting import cast
from deepseek_jax.convert.reading import abstract_trees
from deepseek_jax.files import read_json, write_json
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.record import ARRAYS
from deepseek_jax.uninterrupted import uninterrupted

CHUNK_BYTES = 64 << 20  # of an array that are compressed and written at a time, by each thread


def save(directory: Path, config: ModelConfig, params: dict, buffers: dict, *, dtype: str | None = None):
    """Writes `directory`.  `dtype`: that of the parameters, except those that rules.py keeps in float32; None: theirs.

    Raises UserError if a number overflows `dtype`.
    """
    if dtype:
        params = cast(config, params, dtype)
    directory = Path(directory).absolute()
    write_json(directory / "config.json", config_json.to_json(config))
    arrays = {"params": params, "buffers": buffers}
    chunks = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES), arrays)
    with uninterrupted(), ocp.Checkpointer(_lean()) as checkpointer:
        checkpointer.save(directory / ARRAYS, args=ocp.args.PyTreeSave(arrays, save_args=chunks))


def _lean() -> ocp.PyTreeCheckpointHandler:
    """Writes what StandardCheckpointer reads.  That itself copies all numpy arrays and keeps the bytes of all files."""
    logging.getLogger("absl").addFilter(_is_news)
    handlers = ocp.type_handlers
    registry = handlers.create_type_handler_registry(
        (np.ndarray, handlers.NumpyHandler(deepcopy_host_arrays=False)), (jax.Array, handlers.ArrayHandler())
    )
    return ocp.PyTreeCheckpointHandler(type_handler_registry=registry, use_ocdbt=False)


def _is_news(said: logging.LogRecord) -> bool:
    """Orbax warns that it merges no OCDBT files though none were asked for."""
    return "Skipping merge of OCDBT" not in said.getMessage()


def read_config(directory: Path) -> ModelConfig:
    return config_json.from_json(read_json(Path(directory) / "config.json"))


def load(
    directory: Path, config: ModelConfig, *, dtype: str | None = None, shardings: tuple[dict, dict] | None = None
) -> tuple[dict, dict]:
    """(params, buffers).  `dtype`: that of the parameters, None as stored.

    `shardings` are nested like (params, buffers); without them the arrays are put on the first device.
    """
    directory = Path(directory).absolute()
    params, buffers = abstract_trees(config)
    first = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    of_params, of_buffers = shardings or jax.tree.map(lambda _: first, (params, buffers))
    with ocp.StandardCheckpointer() as checkpointer:
        stored = checkpointer.metadata(directory / ARRAYS).item_metadata.tree
        target = {
            "params": _target(params, stored["params"], of_params, dtype),
            "buffers": _target(buffers, stored["buffers"], of_buffers, None),
        }
        arrays = checkpointer.restore(directory / ARRAYS, target)
    return arrays["params"], arrays["buffers"]


def _target(abstract, stored, shardings, dtype):
    def one(leaf, stored, sharding):
        return jax.ShapeDtypeStruct(leaf.shape, dtype or stored.dtype, sharding=sharding)

    return jax.tree.map(one, abstract, stored, shardings)
