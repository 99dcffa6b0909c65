"""Which part of a global batch each process reads, and how those parts become one array over all devices.

Derived from the sharding, not from the process's number: if a mesh axis that does not shard the batch spans several
processes, these hold, and read, the same sequences.

K microbatches of gradient accumulation  M sequences per batch  R of them in this process  S tokens
"""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from deepseek_jax.parallel.rules import batch_sharding, partition_spec

Batch = dict[str, np.ndarray]


class Share:
    """This process's share of batches of `size` (M) sequences: its devices hold the sequences `rows` [R], ascending."""

    def __init__(self, mesh: Mesh, size: int):
        self._mesh, self._size = mesh, size
        held = NamedSharding(mesh, partition_spec(("batch",))).addressable_devices_indices_map((size,)).values()
        self.rows = np.unique([np.arange(size)[rows] for (rows,) in held])

    def place(self, batch: Batch) -> dict[str, jax.Array]:
        """Combines every process's arrays [R, S] into global arrays [M, S] on the devices."""
        return {key: self._place(array, leading=0) for key, array in batch.items()}

    def place_step(self, microbatches: list[Batch]) -> dict[str, jax.Array | np.ndarray]:
        """The K microbatches [R, S] of a step as the jitted step's input: global arrays [K, M, S] on the devices.

        With a single device they stay on the host: jax.jit transfers them faster than placing them explicitly.
        """
        stacked = {key: np.stack([batch[key] for batch in microbatches]) for key in microbatches[0]}
        if self._mesh.size == 1:
            return stacked
        return {key: self._place(array, leading=1) for key, array in stacked.items()}

    def _place(self, array: np.ndarray, leading: int) -> jax.Array:
        shape = (*array.shape[:leading], self._size, *array.shape[leading + 1 :])

        def part(index: tuple[slice, ...]) -> np.ndarray:
            """One device's shard, given its index in the global array; its rows are contiguous in `self.rows`."""
            first, stop, _ = index[leading].indices(self._size)
            here = slice(*np.searchsorted(self.rows, (first, stop)))
            return array[*index[:leading], here, *index[leading + 1 :]]

        return jax.make_array_from_callback(shape, batch_sharding(self._mesh, leading, array.ndim - leading), part)
