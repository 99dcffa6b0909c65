"""Recurrence over sequences: LSTM and GRU, stacked, in one direction or both.

B batch  S steps  I features in  H hidden  G gates

Products with the input are computed for all steps at once; the loop computes only those with the state.  The loop's
gradient is left to JAX: for 128 x 196 steps with H = 64 it takes 84 ms of CPU time on two cores.  A hand-written one,
with the weight's gradient as a single product after the loop, took 70 ms (with jax 0.12 no less than JAX's), which is
not worth a second derivation.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from deepseek_jax.models import arithmetic
from deepseek_jax.models.arithmetic import multiply
from deepseek_jax.models.hybrid.config import RecurrentConfig
from deepseek_jax.models.hybrid.regularisation import dropout, split_key
from deepseek_jax.models.layers import linear
from deepseek_jax.models.tree import constant, in_order, weight, zeros

State = tuple[Float[Array, "B H"], ...]  # float32; the first is a step's output h


class LSTM(nnx.Module):
    """i, f, g, o from x W + h U + b;  c' = sigmoid(f) c + sigmoid(i) tanh(g);  h' = sigmoid(o) tanh(c').

    Hochreiter and Schmidhuber 1997, with Gers' forget gate, whose bias is initialised to 1 so that the cell remembers.
    """

    def __init__(self, into: int, hidden: int, *, raw: bool, rngs: nnx.Rngs):
        self.input, self.state = _kernels(into, hidden, gates=4, raw=raw, rngs=rngs)
        self.bias = constant(jnp.zeros((4, hidden)).at[1].set(1), (None, "features_out"))

    def start(self, batch: int) -> State:
        zero = jnp.zeros((batch, self.bias.shape[1]), jnp.float32)
        return zero, zero

    def step(self, state: State, projected_BGH: Float[Array, "B G*H"]) -> State:
        """The next state, given this step's x W + b with the gates concatenated."""
        h_BH, c_BH = state
        i, f, g, o = _gates(projected_BGH + _times(h_BH, self.state, projected_BGH.dtype), 4)
        c_BH = jax.nn.sigmoid(f) * c_BH + jax.nn.sigmoid(i) * jnp.tanh(g)
        return jax.nn.sigmoid(o) * jnp.tanh(c_BH), c_BH


class GRU(nnx.Module):
    """n' = tanh(n + sigmoid(r) (u + b_u));  h' = (1 - sigmoid(z)) n' + sigmoid(z) h.

    r and z are from x W + b + h U, n from x W + b alone, u from h U: arXiv:1406.1078, but with the reset gate applied
    after the product with U, as in cuDNN, PyTorch and Flax.
    """

    def __init__(self, into: int, hidden: int, *, raw: bool, rngs: nnx.Rngs):
        self.input, self.state = _kernels(into, hidden, gates=3, raw=raw, rngs=rngs)
        self.bias = zeros((3, hidden), (None, "features_out"))
        self.state_bias = zeros((hidden,), ("features_out",))

    def start(self, batch: int) -> State:
        return (jnp.zeros((batch, self.bias.shape[1]), jnp.float32),)

    def step(self, state: State, projected_BGH: Float[Array, "B G*H"]) -> State:
        """See LSTM.step."""
        (h_BH,) = state
        r, z, n = _gates(projected_BGH, 3)
        r_h, z_h, n_h = _gates(_times(h_BH, self.state, projected_BGH.dtype), 3)
        n = jnp.tanh(n + jax.nn.sigmoid(r + r_h) * (n_h + self.state_bias[...]))
        z = jax.nn.sigmoid(z + z_h)
        return ((1 - z) * n + z * h_BH,)


CELLS = {"lstm": LSTM, "gru": GRU}
DIRECTIONS = "forwards", "backwards"


def _kernels(into, hidden, *, gates, raw, rngs):
    """The kernels of the input [I G H] and of the state [H G H]; orthogonal blocks preserve norms (arXiv:1312.6120)."""
    kernel = weight(
        rngs.params(), (into, gates, hidden), (None if raw else "features_in", None, "features_out"), into**-0.5
    )
    square = jax.nn.initializers.orthogonal()
    squares = [square(key, (hidden, hidden)) for key in jax.random.split(rngs.params(), gates)]
    # Not sharded over its input dimension, or each step of the loop would gather it.
    return kernel, constant(jnp.stack(squares, axis=1), (None, None, "features_out"))


def _times(h_BH, kernel, dtype):
    return multiply(h_BH.astype(dtype), kernel[...].astype(dtype).reshape(h_BH.shape[1], -1), arithmetic.of(kernel))


def _gates(z_BGH, count):
    return jnp.split(z_BGH.astype(jnp.float32), count, axis=-1)


def run(
    cell: LSTM | GRU, x_BSI: Float[Array, "B S I"], real_BS: Bool[Array, "B S"] | None, *, reverse: bool = False
) -> Float[Array, "B S H"]:
    """The cell's outputs at every step, from a zero state, forwards or (`reverse`) from the last step to the first.

    At padding (`real_BS` false) the state is kept and the output is zero, so `reverse` starts at the last real step.
    """
    B, S, _ = x_BSI.shape
    projected_SBGH = linear(x_BSI.swapaxes(0, 1), cell.input, cell.bias)

    def step(state, inputs):
        projected_BGH, real_B = inputs
        new = cell.step(state, projected_BGH)
        if real_B is None:
            return new, new[0].astype(x_BSI.dtype)
        state = jax.tree.map(lambda new, old: jnp.where(real_B[:, None], new, old), new, state)
        return state, jnp.where(real_B[:, None], new[0], 0).astype(x_BSI.dtype)

    inputs = projected_SBGH.reshape(S, B, -1), None if real_BS is None else real_BS.T
    _, h_SBH = jax.lax.scan(step, cell.start(B), inputs, reverse=reverse)
    return h_SBH.swapaxes(0, 1)


class Recurrent(nnx.Module):
    """Stacked recurrent layers.  A bidirectional layer concatenates both directions' outputs, forwards first."""

    def __init__(self, config: RecurrentConfig, features: int, *, raw: bool, rngs: nnx.Rngs):
        self.layers, self.size = nnx.Dict(), config.hidden_size * (1 + config.bidirectional)
        make, into = CELLS[config.kind], features
        for number in range(config.layers):
            of_data = raw and number == 0
            ways = DIRECTIONS[: 1 + config.bidirectional]
            cells = {way: make(into, config.hidden_size, raw=of_data, rngs=rngs) for way in ways}
            self.layers[str(number)] = nnx.Dict(cells)
            into = self.size

    def __call__(
        self,
        x_BSI: Float[Array, "B S I"],
        real_BS: Bool[Array, "B S"] | None,
        drop_rate: float,
        key: PRNGKeyArray | None,
    ) -> Float[Array, "B S size"]:
        """Applies the layers, each followed by dropout; `size` is hidden_size, twice that if bidirectional."""
        for (name, cells), layer_key in zip(in_order(self.layers), split_key(key, len(self.layers)), strict=True):
            with jax.named_scope(f"recurrent_{name}"):
                ways = DIRECTIONS[: len(cells)]
                sides = [run(cells[way], x_BSI, real_BS, reverse=way == "backwards") for way in ways]
                x_BSI = dropout(jnp.concatenate(sides, axis=-1), drop_rate, layer_key)
        return x_BSI
