"""Which parameters are matrices, and which of their dimensions a product sums over: told from paths and ranks alone.

Every weight array has leading dimensions that enumerate matrices (layers of a stack, experts), then input dimensions,
which a product sums over, then output dimensions.  All compression methods see it folded to [N, I, O].

N matrices  I inputs  O outputs
"""

import dataclasses
import math
import re

import jax

from deepseek_jax.errors import UserError
from deepseek_jax.models.depth import ADAPTERS
from deepseek_jax.models.tree import flatten, is_vector

LINEAR, TABLE, CONTROL = "linear", "table", "control"

_CONTROL = re.compile(r"(router|_residual|stream_head|depthwise)/")
_HEAD = re.compile(r"^head(?!/shared/)")  # a detector's head/shared is an ordinary convolution
_STATE = ("mean", "variance", "table")  # buffers that are no matrices
_ALL_BUT_LAST = re.compile(r"attention/out$|(convolutions/\d+|shortcut|head/shared|stem|parts/\w+)/kernel$")


@dataclasses.dataclass(frozen=True)
class Matrix:
    """The first `leading` dimensions enumerate matrices, the next `inputs` ones are summed over, the rest are outputs.

    kind  linear   multiplied with activations: in attention, feed-forward, experts, convolution, recurrence
          table    the embedding, whose rows are looked up (each counts as a matrix with one output), and the heads
          control  routers, hyper-connections and depthwise convolutions: few weights with a large effect, which no
                   compression method touches
    """

    kind: str
    leading: int
    inputs: int

    def fold(self, array):
        """The array reshaped to [N, I, O]."""
        shape = array.shape
        numbers, inputs = shape[: self.leading], shape[self.leading : self.leading + self.inputs]
        return array.reshape(math.prod(numbers), math.prod(inputs), -1)

    def split(self, dims: tuple) -> tuple[tuple, tuple, tuple]:
        """A tuple with an entry per dimension (a shape, names), split into (leading, inputs, outputs)."""
        last = self.leading + self.inputs
        return dims[: self.leading], dims[self.leading : last], dims[last:]

    def inputs_of(self, shape: tuple[int, ...]) -> int:
        return math.prod(self.split(shape)[1])


def matrix_of(path: str, rank: int) -> Matrix | None:
    """The geometry of the parameter with `rank` dimensions at `path`, None for vectors.

    >>> matrix_of("layers/1-3/attention/out", 4)
    Matrix(kind='linear', leading=1, inputs=2)
    """
    if path == "embedding":
        return Matrix(TABLE, leading=1, inputs=1)
    leading = path.startswith("layers/") + ("/experts/" in path) + path.endswith("/out_down")
    name = path.rpartition("/")[2]
    if is_vector(name) or name in _STATE or rank - leading < 2:
        return None
    kind = CONTROL if _CONTROL.search(path) else TABLE if _HEAD.search(path) else LINEAR
    return Matrix(kind, leading, rank - leading - 1 if _ALL_BUT_LAST.search(path) else 1)


def is_product(path: str, matrix: Matrix) -> bool:
    """Whether an Arithmetic can be attached to it: not to the vocabulary's head, which is computed chunk by chunk."""
    return matrix.kind == LINEAR or path.startswith("head/")


def matrices(params: dict[str, object]) -> dict[str, Matrix]:
    """The matrices among `params`, both by path; without those of kind "control" and without adapters."""
    own = {path: leaf for path, leaf in params.items() if not path.startswith(f"{ADAPTERS}/")}
    found = {path: matrix_of(path, len(leaf.shape)) for path, leaf in own.items()}
    return {path: matrix for path, matrix in found.items() if matrix and matrix.kind != CONTROL}


def chosen(params: dict[str, object], pattern: str, key: str, kinds: tuple[str, ...]) -> dict[str, Matrix]:
    """The matrices whose path matches the regular expression `pattern`; if it is empty, all of these `kinds`.

    Raises UserError, naming the setting `key`, for a pattern that matches no path.
    """
    every = matrices(params)
    if not pattern:
        return {path: matrix for path, matrix in every.items() if matrix.kind in kinds}
    found = {path: matrix for path, matrix in every.items() if re.search(pattern, path)}
    if not found:
        there = ", ".join(_some(every))
        raise UserError(f"{key} is {pattern!r}, which matches no matrix's path; there are {there}.")
    return found


def by_matrix(nested: dict) -> dict[str, dict]:
    """Packed matrices or adapters by the path of their matrix: each a dict of its arrays by name ("scales", "a")."""
    found = {}
    for path, array in flatten(nested).items():
        matrix, _, part = path.rpartition("/")
        found.setdefault(matrix, {})[part] = array
    return found


def ranks(axes: dict[str, tuple]) -> dict:
    """By path, a stand-in array with the right number of dimensions, for functions that look at nothing else."""
    return {path: jax.ShapeDtypeStruct((1,) * len(names), "float32") for path, names in axes.items()}


def _some(every) -> list[str]:
    paths = sorted(every)
    return paths[:: max(len(paths) // 3, 1)][:3]
