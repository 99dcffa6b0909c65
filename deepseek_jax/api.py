"""The Python interface to a model: load it, call it, generate, trace, differentiate, save.

B batch  S sequence  V vocabulary  N new tokens  E experts  I expert width  D model
"""

import dataclasses
import functools
import json
import operator
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from deepseek_jax import compiling, record
from deepseek_jax.checking import MOST, MOST_NEW_TOKENS, choice, require_family
from deepseek_jax.choices import DTYPES, SPELLINGS
from deepseek_jax.convert import beside, huggingface
from deepseek_jax.convert.casting import cast, dtypes
from deepseek_jax.data.tokenizer import Tokenizer, TokenizerFile
from deepseek_jax.errors import LOG, UserError
from deepseek_jax.experiment_file import resolve
from deepseek_jax.infer import generate as plain
from deepseek_jax.infer import speculative as speculation
from deepseek_jax.infer.prompts import NO_EOS, before_eos, beyond, refuse_empty
from deepseek_jax.infer.sampling import Sampling
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.decoder import Decoder, initialise, same_document, shift
from deepseek_jax.models.traced import Edit, Trace, traced
from deepseek_jax.models.tree import merge, split
from deepseek_jax.tasks.cross_entropy import cross_entropy


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scores:
    """`logits` [b, s] score the token after position s, `mtp_logits[k]` the one k + 2 positions on; None without MTP.

    They are meaningful where the row has a token at s and, for `mtp_logits[k]`, k + 1 more after it.
    """

    logits: Float[Array, "B S V"]
    mtp_logits: list[Float[Array, "B S V"]] | None


class _Entries(dict):
    """Entries of config.json that nobody changes, so that they can be part of a pytree's structure."""

    def __hash__(self):
        return hash(json.dumps(self, sort_keys=True))


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("params", "buffers"),
    meta_fields=("config", "graphdef", "special_tokens", "tokenizer_file"),
)
@dataclasses.dataclass(frozen=True, eq=False)  # arrays have no truth value: compare by identity
class Model:
    """A decoder's structure and arrays, a pytree.  Functions below are compiled once for each shape of their input.

    `special_tokens`: config.json's entries about them, saved again for other programs.
    """

    config: ModelConfig
    graphdef: nnx.GraphDef
    params: dict
    buffers: dict
    special_tokens: dict = dataclasses.field(default_factory=dict)
    tokenizer_file: TokenizerFile | None = None

    def __post_init__(self):
        object.__setattr__(self, "special_tokens", _Entries(self.special_tokens))

    @property
    def tokenizer(self) -> Tokenizer | None:
        """That of the directory that the model comes from, read when it is first asked for; None if it has none."""
        return self.tokenizer_file and self.tokenizer_file.tokenizer

    def __call__(self, input_ids: Int[Array, "B S"], attention_mask: Int[Array, "B S"] | None = None) -> Scores:
        """The scores at every position.  `attention_mask`: 1 for tokens, 0 for padding, on the left or the right."""
        rows = self._checked_rows(input_ids, attention_mask)
        with self.exact_products():
            return _scores(self.graphdef, self.params, self.buffers, *rows)

    def exact_products(self):
        """A context in which float32 products are exact to float32: GPUs and TPUs round the factors by default."""
        exact = self.params["embedding"].dtype == jnp.float32
        return jax.default_matmul_precision("highest" if exact else "default")

    def _checked(self, input_ids) -> np.ndarray:
        """`input_ids` as int32 [B, S].  Of an array that a jax transform traces only shape and type can be checked."""
        input_ids = input_ids if _is_traced(input_ids) else _array(input_ids, "input_ids")
        if input_ids.ndim != 2 or not input_ids.size:
            raise UserError(f"input_ids has shape {input_ids.shape}; give token numbers as [batch, sequence].")
        return self._known(input_ids, "input_ids")

    def _checked_rows(self, input_ids, attention_mask) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokens, positions and segment ids, int32 [B, S]."""
        input_ids = self._checked(input_ids)
        mask = np.ones(input_ids.shape, np.int32) if attention_mask is None else attention_mask
        if not _is_traced(mask):
            mask = _array(mask, "attention_mask")
        if mask.shape != input_ids.shape:
            raise UserError(f"attention_mask is {mask.shape} and input_ids {input_ids.shape}; give both one shape.")
        real = mask.astype(np.int32)
        if not _is_traced(mask):
            if not np.isin(mask, (0, 1)).all():
                raise UserError("attention_mask holds other numbers than 1 (a token) and 0 (padding).")
            if (np.abs(np.diff(np.pad(real, ((0, 0), (1, 1))), axis=1)).sum(axis=1) > 2).any():
                raise UserError("attention_mask has padding between tokens of a row; it belongs before or after them.")
        positions = (real.cumsum(axis=1, dtype=np.int32) - 1).clip(0)
        return input_ids, positions, real

    def _checked_prompts(self, prompts) -> list[np.ndarray]:
        """Each of `prompts` as int32 [S]."""
        try:
            prompts = [_array(prompt, "a prompt") for prompt in prompts]
        except TypeError:
            raise UserError(f"prompts is {prompts!r}; give a list of token numbers for each prompt.") from None
        for prompt in prompts:
            if prompt.ndim != 1:
                raise UserError(f"a prompt has shape {prompt.shape}; give a list of token numbers for each prompt.")
        refuse_empty(prompts)
        return [self._known(prompt, "a prompt") for prompt in prompts]

    def _known(self, tokens: np.ndarray, what: str) -> np.ndarray:
        if tokens.size and tokens.dtype.kind not in "iu":
            raise UserError(f"{what} is of type {tokens.dtype.name}; give token numbers, which are whole.")
        if _is_traced(tokens):
            return tokens.astype(np.int32)
        outside = tokens[(tokens < 0) | (tokens >= self.config.vocab_size)]
        if outside.size:
            last = self.config.vocab_size - 1
            raise UserError(f"token {outside[0]} is not in this model's vocabulary, which goes from 0 to {last}.")
        return tokens.astype(np.int32)


def from_pretrained(directory: str | Path, dtype: DTypeLike = "float32") -> Model:
    """The model of a checkpoint's directory, with weights and activations in `dtype`.

    The directory is that of a released model, of a run (its newest checkpoint, averaged if the run keeps averages) or
    of the output of `deepseek-jax convert --to orbax`.

    `dtype` is float32, bfloat16 or float16, by its name or as a numpy or jax type: "bfloat16" or jnp.bfloat16.  Router
    biases and, in V4, hyper-connections, sinks and position biases stay float32, as released.

    Raises UserError if the directory holds no checkpoint or one that does not fit its config.json, and if a weight is
    too large for `dtype`.
    """
    dtype, directory = _name_of(dtype), Path(directory)
    if record.kind(directory) in ("run", "orbax"):
        config, params, buffers = _of_this_package(directory, dtype)
    else:
        config = huggingface.read_config(directory)
        params, buffers = huggingface.load(directory, config, dtype=dtype)
    tokenizer = TokenizerFile.of(directory, config.vocab_size)
    return _model(config, dtype, params, buffers, beside.special_tokens(directory), tokenizer)


def from_config(config: ModelConfig | str | Path, seed: int = 0, dtype: DTypeLike = "float32") -> Model:
    """A new model, with the same initial parameters as a run with `train.seed=seed`.

    `config` is a ModelConfig or the path of an experiment's config, such as configs/v3_tiny.py.  `dtype` as in
    `from_pretrained`.
    """
    if not isinstance(config, ModelConfig):
        experiment = resolve(str(config))
        require_family("language_model", experiment.family, config, "from_config makes language models")
        config = experiment.model
    dtype, seed = _name_of(dtype), _whole(seed, "seed", 0, MOST)
    drawn_as = "bfloat16" if dtype == "bfloat16" else "float32"  # a kernel that draws float16 rounds differently
    params, buffers = _drawn(config, drawn_as, jax.random.key(seed))
    return _model(config, dtype, params if drawn_as == dtype else cast(config, params, dtype), buffers)


def save_pretrained(model: Model, directory: str | Path, spelling: str = "huggingface"):
    """Writes config.json and safetensors files, which `from_pretrained` and Hugging Face can read, and the tokenizer.

    The tokenizer's files are copied from the directory that the model was loaded from, if they are still there.
    `spelling` "deepseek" gives V4's tensors and config.json the names under which DeepSeek ships them.
    """
    choice("spelling", spelling, SPELLINGS)
    if Path(directory).is_file():
        raise UserError(f"{directory} is a file; give a directory.")
    if record.kind(directory) == "run":
        raise UserError(f"{directory} is a run directory, whose config.json would be lost; give another directory.")
    arrays = model.params, model.buffers
    huggingface.save(Path(directory), model.config, *arrays, spelling=spelling, values=model.special_tokens)
    if model.tokenizer_file:
        beside.copy_files(model.tokenizer_file.directory, Path(directory))


def generate(
    model: Model,
    prompts: Sequence[Sequence[int]] | Int[Array, "B S"],
    max_new_tokens: int = 16,
    *,
    eos: int | Literal["tokenizer"] | None = "tokenizer",
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    speculative: bool = False,
) -> Int[np.ndarray, "B N"]:
    """The next `max_new_tokens` of each prompt, greedily chosen unless `temperature` is above 0.

    Above 0 they are sampled, with `seed`, from the `top_k` likeliest (0: from all), and of these from the fewest that
    together have probability `top_p` (1: from all).

    Prompts may differ in length.  After the first `eos` of a row, the rest of it is `eos`: unless given, that of the
    model's tokenizer, if it has one; None: no token ends a text.  `speculative` drafts with
    the model's MTP modules: the same tokens in fewer steps, though in bfloat16 near-ties may be decided differently.
    The number of accepted drafts is logged at level INFO, texts past max_position_embeddings at level WARNING.

    Raises UserError for an empty prompt, tokens outside the vocabulary, and `speculative` without MTP modules.
    """
    prompts = model._checked_prompts(prompts)
    max_new_tokens = _whole(max_new_tokens, "max_new_tokens", 0, MOST_NEW_TOKENS)
    top_k, seed = _whole(top_k, "top_k", 0, MOST), _whole(seed, "seed", 0, MOST)
    eos = _eos_of(model) if isinstance(eos, str) and eos == "tokenizer" else eos
    eos = NO_EOS if eos is None else _whole(eos, "eos", 0, model.config.vocab_size - 1)
    if not max_new_tokens:
        return np.zeros((len(prompts), 0), np.int32)
    decode = _speculated if speculative else plain.new_tokens
    with model.exact_products():
        new = decode(
            (model.graphdef, model.params, model.buffers),
            prompts,
            max_new_tokens,
            eos=eos,
            sampling=Sampling(temperature, top_k, top_p),
            seed=seed,
        )
    lengths = [len(prompt) + len(row) for prompt, row in zip(prompts, before_eos(new, eos), strict=True)]
    if warning := beyond(lengths, model.config.max_position_embeddings):
        LOG.warning(warning)
    return new


def trace(
    model: Model,
    input_ids: Int[Array, "B S"],
    attention_mask: Int[Array, "B S"] | None = None,
    *,
    edit: Edit | None = None,
) -> Trace:
    """The residual stream between the sublayers, the experts and weights chosen by each token, and the logits.

    `edit(layer, place, x)` returns what replaces x in the stream, after "attention" and after "feed_forward" of each
    layer; before the first one, place is "embedding" and layer -1.  `attention_mask` as in a call of the model.  MTP
    modules, which come after the last layer, are left out.

    Without `edit` this is compiled once for each shape of the input, with it at every call: if many calls differ only
    in arrays, `jax.jit` a function of those arrays that calls this.
    """
    rows = model._checked_rows(input_ids, attention_mask)
    run = compiling.jit(static_argnums=0)(functools.partial(_traced, edit=edit)) if edit else _unedited
    with model.exact_products():
        return run(model.graphdef, model.params, model.buffers, *rows)


def loss_and_grads(model: Model, input_ids: Int[Array, "B S"]) -> tuple[float, dict[str, Float[np.ndarray, "..."]]]:
    """(mean cross-entropy of the next token in nats, its gradients by Hugging Face's parameter names).

    Experts are fused as in Hugging Face: gate_up_proj [E, 2I, D], gate first, and down_proj [E, D, I].  MTP modules do
    not contribute to this loss, so they have no gradients.
    """
    input_ids = model._checked(_array(input_ids, "input_ids"))
    if input_ids.shape[1] < 2:
        raise UserError("input_ids has one token a row; the loss of the next token needs at least two.")
    with model.exact_products():
        loss, grads = _loss_and_grads(model.graphdef, model.params, model.buffers, input_ids)
    return float(loss), huggingface.export(model.config, grads, fuse=True)


def _eos_of(model: Model) -> int | None:
    try:
        return model.tokenizer and model.tokenizer.eos
    except UserError as error:
        raise UserError(f"{error}  Or give `eos`: a token, or None if none is to end a text.") from error


def _speculated(*given, **more) -> Int[np.ndarray, "B N"]:
    new, acceptance = speculation.new_tokens(*given, **more)
    LOG.info("speculation: %s", acceptance)
    return new


def _of_this_package(directory: Path, dtype: str) -> tuple[ModelConfig, dict, dict]:
    from deepseek_jax.train.checkpoints import any_checkpoint  # takes half a second, only needed here

    require_family("language_model", record.family(directory), directory, "from_pretrained reads language models")
    found = any_checkpoint.read(directory, dtype=None)
    params, buffers = jax.device_get((found.params, found.buffers))
    return found.config, cast(found.config, params, dtype), buffers


def _model(config: ModelConfig, dtype: str, params: dict, buffers: dict, *beside) -> Model:
    graphdef, _, _ = split(jax.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(params=0), dtype=dtype)))
    return Model(config, graphdef, *jax.tree.map(jnp.asarray, (params, buffers)), *beside)


def _name_of(dtype: DTypeLike) -> str:
    """The dtype's name, one of DTYPES; UserError for any other."""
    try:
        name = np.dtype(dtype).name
    except TypeError:
        name = None
    if name not in DTYPES:
        raise UserError(f"dtype is {dtype!r}; choose one of {', '.join(DTYPES)}.")
    return name


def _whole(number, what: str, least: int, most: int) -> int:
    try:
        found = operator.index(number)
    except TypeError:
        raise UserError(f"{what} is {number!r}; give one whole number.") from None
    if not least <= found <= most:
        raise UserError(f"{what} is {found}; it must lie between {least} and {most}.")
    return found


def _is_traced(tokens) -> bool:
    return isinstance(tokens, jax.core.Tracer)


def _array(tokens, what: str) -> np.ndarray:
    try:
        return np.asarray(tokens)
    except jax.errors.TracerArrayConversionError:
        raise UserError(
            f"{what} is traced by a jax transform or holds numbers that are; calls of the model and `trace` take a "
            "traced array, `generate` and `loss_and_grads` belong outside of transforms."
        ) from None
    except ValueError:
        raise UserError(f"{what} has rows of different lengths; pad them, attention_mask too.") from None


@compiling.jit(static_argnums=(0, 1), least_memory=True)
def _drawn(config: ModelConfig, dtype: str, key: Array) -> tuple[dict, dict]:
    """(params, buffers), each cast as soon as it is drawn: all in float32 would take several times the memory."""
    params, buffers = initialise(config, key)[1:]
    if dtype != "float32":
        params = jax.tree.map(lambda leaf, kind: leaf.astype(kind), params, dtypes(config, params, dtype))
    return params, buffers


@compiling.jit(static_argnums=0)
def _scores(graphdef, params, buffers, tokens_BS, positions_BS, segment_ids_BS) -> Scores:
    model = merge(graphdef, params, buffers)
    output = model(tokens_BS, positions_BS, segment_ids_BS)
    return Scores(model.logits(output.hidden), [model.logits(hidden) for hidden in output.mtp] or None)


def _traced(graphdef, params, buffers, tokens_BS, positions_BS, segment_ids_BS, edit=None) -> Trace:
    return traced(merge(graphdef, params, buffers), tokens_BS, positions_BS, segment_ids_BS, edit)


_unedited = compiling.jit(static_argnums=0)(_traced)


@compiling.jit(static_argnums=0)
def _loss_and_grads(graphdef, params, buffers, tokens_BS):
    modules = {"mtp": params["mtp"]} if "mtp" in params else {}
    positions_BS = jnp.broadcast_to(jnp.arange(tokens_BS.shape[1]), tokens_BS.shape)
    ones_BS = jnp.ones_like(tokens_BS)

    def loss(main):
        model = merge(graphdef, main | modules, buffers)
        hidden = model(tokens_BS, positions_BS, ones_BS).hidden
        counted_BS = same_document(ones_BS, 1)
        return cross_entropy(hidden, model.head_weight(), shift(tokens_BS, 1), counted_BS / counted_BS.sum())[0]

    return jax.value_and_grad(loss)({name: tree for name, tree in params.items() if name != "mtp"})
