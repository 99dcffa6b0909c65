"""The hybrid network: convolution, recurrence, attention and a head; the config may omit any of the first three.

B batch  S steps  C channels or columns  F features  N outputs  H W image  h w feature map
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from deepseek_jax.models.hybrid.config import HybridConfig
from deepseek_jax.models.hybrid.convolution import FeatureExtractor
from deepseek_jax.models.hybrid.efficientnet import EfficientNetLite
from deepseek_jax.models.hybrid.heads import make_head
from deepseek_jax.models.hybrid.pooling import all_steps, both_ends, last_step, real_steps
from deepseek_jax.models.hybrid.recurrent import Recurrent
from deepseek_jax.models.hybrid.regularisation import dropout, split_key
from deepseek_jax.models.hybrid.self_attention import SelfAttention
from deepseek_jax.models.tree import weight


class Hybrid(nnx.Module):
    """`dtype` is that of the activations; parameters and outputs are float32."""

    def __init__(self, config: HybridConfig, *, rngs: nnx.Rngs, dtype: str = "float32"):
        self.config, self.dtype = config, dtype
        features, raw = config.channels, True  # raw: the next part's input is still the data itself
        if config.input == "text":
            features, raw = config.embed_dim, False
            # Vectors of length 1, which Adam can change within a few hundred steps: a scale of 1.0 learned far slower.
            scale = features**-0.5
            self.embedding = weight(rngs.params(), (config.vocab_size, features), ("vocab", "features_in"), scale)
        rank = 2 if config.input == "image" else 1
        if config.convolution.filters:
            if config.convolution.kind == "efficientnet_lite0":
                self.convolution = EfficientNetLite(config.convolution.stages, config.convolution.enlarge, rngs=rngs)
            else:
                self.convolution = FeatureExtractor(config.convolution, rank, features, raw=raw, rngs=rngs)
            features, raw = config.convolution.channels, False
        if config.input == "image" and config.sequence == "rows" and config.head != "boxes":  # boxes are those of cells
            features *= config.map_size[1]
        if config.recurrent.kind != "none":
            self.recurrent = Recurrent(config.recurrent, features, raw=raw, rngs=rngs)
            features = self.recurrent.size
        if config.attention.num_heads:
            self.attention = SelfAttention(config.attention, features, rngs=rngs)
        self.head = make_head(config.head, features, config.outputs, rngs=rngs)

    def __call__(
        self,
        inputs: Float[Array, "B H W C"] | Float[Array, "B S C"] | Int[Array, "B S"] | Float[Array, "B C"],
        lengths: Int[Array, "B"] | None = None,
        *,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "B N"] | dict[str, Float[Array, "B h w _"]], dict]:
        """Returns (outputs, statistics) for a batch of images, series, texts or table rows, depending on the config.

        `lengths`: real steps of each series or text; None: no padding.  A `key` means training: it drives dropout, and
        batch norms use the batch's moments.  Outputs are logits, numbers or what `heads.Boxes` describes.  Statistics
        are the batch norms' in training, nested as the buffers are, for `updated_buffers`.
        """
        config = self.config
        of_convolution, of_recurrent, of_sequence = split_key(key, 3)
        x, real = self._enter(inputs, lengths)
        x, real, statistics = self._extract(x, real, of_convolution)
        if config.head == "boxes":
            shape_Bhw = x.shape[:3]
            x = self._recur(_steps(x, "cells"), real, of_recurrent)
            return self.head(self._attend(x, x, real, of_sequence).reshape(*shape_Bhw, -1)), statistics
        x = self._recur(_steps(x, config.sequence), real, of_recurrent)
        return self.head(self._read(x, real, of_sequence)), statistics

    def _enter(self, inputs, lengths):
        """Returns the input as a feature map [B ... C], and which of its steps are real (None: all)."""
        if self.config.input == "text":
            inputs = jnp.take(self.embedding[...], inputs, axis=0)
        elif self.config.input == "table":
            inputs = inputs[:, None]
        real = None if lengths is None else real_steps(lengths, inputs.shape[1])
        return inputs.astype(self.dtype), real

    def _extract(self, x, real, key):
        """Applies the convolution; returns (feature map, which of its steps are real, statistics)."""
        if not self.config.convolution.filters:
            return x, real, {}
        of_paths, of_features = split_key(key, 2)
        if self.config.convolution.kind == "efficientnet_lite0":
            x, seen = self.convolution(x, training=key is not None)
        else:
            x, real, seen = self.convolution(x, real, self.config.drop_path, of_paths)
        return dropout(x, self.config.dropout, of_features), real, {"convolution": seen} if seen else {}

    def _recur(self, x_BSF, real_BS, key):
        if self.config.recurrent.kind == "none":
            return x_BSF
        return self.recurrent(x_BSF, real_BS, self.config.dropout, key)

    def _read(self, x_BSF, real_BS, key) -> Float[Array, "B F"]:
        """The head's input; where that is only the last step, attention is computed for that step alone."""
        config = self.config
        if config.readout == "last" and config.recurrent.reads_both_ways and not config.attention.num_heads:
            return both_ends(x_BSF, real_BS)
        if config.readout == "last":
            return self._attend(last_step(x_BSF, real_BS)[:, None], x_BSF, real_BS, key)[:, 0]
        return all_steps(self._attend(x_BSF, x_BSF, real_BS, key), real_BS, config.readout)

    def _attend(self, asking_BQF, x_BSF, real_BS: Bool[Array, "B S"] | None, key):
        if not self.config.attention.num_heads:
            return asking_BQF
        of_path, of_features = split_key(key, 2)
        with jax.named_scope("self_attention"):
            y_BQF = self.attention(asking_BQF, x_BSF, real_BS, self.config.drop_path, of_path)
        return dropout(y_BQF, self.config.dropout, of_features)


def _steps(x, sequence: str) -> Float[Array, "B S F"]:
    """A feature map as a sequence: an image's cells one by one, or whole rows; series and texts are returned as is."""
    if x.ndim == 3:
        return x
    B, h, w, C = x.shape
    return x.reshape(B, h * w, C) if sequence == "cells" else x.reshape(B, h, w * C)
