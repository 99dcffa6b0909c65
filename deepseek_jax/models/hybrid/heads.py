"""Output heads of the hybrid network: classes, numbers, or boxes.

B batch  F features  N outputs  h w rows and columns of the feature map
"""

import jax
from flax import nnx
from jaxtyping import Array, Float

from deepseek_jax.models.hybrid.convolution import Convolution
from deepseek_jax.models.layers import linear
from deepseek_jax.models.tree import constant, weight

RARE = -2.19  # log(0.1 / 0.9): few cells are centres; this initial bias keeps the loss stable (arXiv:1708.02002, 4.1)


class Dense(nnx.Module):
    """x W + b, returned in float32: class logits, or numbers."""

    def __init__(self, features: int, outputs: int, *, bias: float = 0.0, rngs: nnx.Rngs):
        self.kernel = weight(rngs.params(), (features, outputs), ("features_in", None), features**-0.5)
        self.bias = constant([bias] * outputs, (None,))

    def __call__(self, x: Float[Array, "... F"]) -> Float[Array, "... N"]:
        return linear(x, self.kernel).astype("float32") + self.bias[...]


class Boxes(nnx.Module):
    """Objects as points (arXiv:1904.07850): each cell predicts whether an object's centre is in it, and its box.

    heat    [B h w N]  logits that the cell holds the centre of an object of each class
    size    [B h w 2]  height and width of the box, as fractions of the image's
    offset  [B h w 2]  of the centre from the cell's upper left corner, down and right, in units of a cell
    """

    def __init__(self, features: int, classes: int, *, rngs: nnx.Rngs):
        self.shared = Convolution(2, features, features, 3, bias=True, raw=False, rngs=rngs)
        self.heat = Dense(features, classes, bias=RARE, rngs=rngs)
        self.size = Dense(features, 2, rngs=rngs)
        self.offset = Dense(features, 2, rngs=rngs)

    def __call__(self, x_BhwF: Float[Array, "B h w F"]) -> dict[str, Float[Array, "B h w _"]]:
        x_BhwF = jax.nn.relu(self.shared(x_BhwF))
        return {"heat": self.heat(x_BhwF), "size": self.size(x_BhwF), "offset": self.offset(x_BhwF)}


def make_head(kind: str, features: int, outputs: int, *, rngs: nnx.Rngs) -> Dense | Boxes:
    return (Boxes if kind == "boxes" else Dense)(features, outputs, rngs=rngs)
