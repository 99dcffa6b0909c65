"""Models of llama.cpp: converts a GGUF file to a Llama checkpoint, dequantising its low-bit blocks.

In GGUF the two dimensions of a head that RoPE rotates together are adjacent; the layers here, like Hugging Face's,
pair the first half of a head with the second, so queries and keys are permuted.
"""

import functools
from pathlib import Path

import jax
import numpy as np

from deepseek_jax.convert import config_json, shards
from deepseek_jax.convert.names import place
from deepseek_jax.convert.reading import abstract_trees, within
from deepseek_jax.convert.safetensors_file import Output
from deepseek_jax.errors import UserError
from deepseek_jax.files import write_json
from deepseek_jax.reporting import Report, no_report

LAYER = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
MODEL = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def rewrite(source: Path, target: Path, *, dtype: str = "float32", report: Report = no_report):
    """Writes config.json and safetensors, dequantising one tensor at a time; logs a warning about NaN.

    Raises UserError for architectures other than Llama, and if the library gguf is not installed.
    """
    reader = _open(source)
    config = _config(reader, source)
    outputs = [_output(tensor, config, np.dtype(dtype), source) for tensor in reader.tensors]
    if missing := _names(config) - {output.name for output in outputs}:
        raise UserError(f"{source} has no {min(missing)}; a part of a model that is split, or a damaged copy.")
    write_json(target / "config.json", config | {"torch_dtype": dtype})
    shards.write(target, outputs, shards.SHARD_BYTES, report).warn(source)


def _open(source):
    try:
        import gguf
    except ImportError:
        raise UserError("a .gguf file is read by the library gguf: pip install gguf.") from None
    try:
        return gguf.GGUFReader(source)
    except (OSError, ValueError, IndexError) as error:  # IndexError: the file ends within its header
        raise UserError(f"{source} is not a GGUF file that can be read: {error}.") from None


def _config(reader, source) -> dict:
    """The config.json of the file's Llama model, as a dict."""

    def field(name, default=None):
        found = reader.get_field(name)
        if found is None and default is None:
            raise UserError(f"{source} has no {name}.")
        return default if found is None else found.contents()

    if (architecture := field("general.architecture")) != "llama":
        raise UserError(f"{source} holds a model of the architecture {architecture}; only llama is read from GGUF.")
    names = {tensor.name for tensor in reader.tensors}
    heads, width = field("llama.attention.head_count"), field("llama.embedding_length")
    if "rope_freqs.weight" in names or field("llama.rope.scaling.type", "none") != "none":
        raise UserError(f"{source} scales its rotary embeddings, which is not read from GGUF.")
    embedding = next((tensor for tensor in reader.tensors if tensor.name == "token_embd.weight"), None)
    if embedding is None:
        raise UserError(f"{source} has no token_embd.weight; a part of a model that is split, or a damaged copy.")
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": int(embedding.shape[1]),  # GGUF lists dimensions innermost first
        "hidden_size": width,
        "intermediate_size": field("llama.feed_forward_length"),
        "num_hidden_layers": field("llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": field("llama.attention.head_count_kv", heads),
        "head_dim": field("llama.rope.dimension_count", width // heads),
        "max_position_embeddings": field("llama.context_length"),
        "rms_norm_eps": float(np.float32(field("llama.attention.layer_norm_rms_epsilon")).astype(str)),
        "rope_theta": float(field("llama.rope.freq_base", 10000.0)),
        "rope_scaling": None,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": "output.weight" not in names,
    }


def _names(config) -> set[str]:
    """Hugging Face's names of all tensors of a model with this config.json."""
    model = config_json.from_json(config)
    places = jax.tree_util.tree_map_with_path(lambda path, _: place(within(path), model), abstract_trees(model))
    return {name for where in jax.tree.leaves(places) for name in where.names.values()}


def _output(tensor, config, dtype, source) -> Output:
    if not tensor.name.endswith(".weight"):
        raise UserError(f"{source} has a tensor {tensor.name}; of Llamas only weights without biases are read.")
    stem = tensor.name.removesuffix(".weight")
    if stem in MODEL:
        name = MODEL[stem]
    else:
        _, layer, part = [*stem.split("."), "", ""][:3]
        if part not in LAYER:
            raise UserError(f"{source} has a tensor {tensor.name}, which no layer of Llama has.")
        name = f"model.layers.{layer}.{LAYER[part]}"
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    read = functools.partial(_read, tensor, heads.get(stem.rpartition(".")[2]))
    return Output(f"{name}.weight", dtype, tuple(int(size) for size in reversed(tensor.shape)), (read,))


def _read(tensor, heads: int | None) -> np.ndarray:
    from gguf import quants

    array = quants.dequantize(tensor.data, tensor.tensor_type).reshape([int(size) for size in reversed(tensor.shape)])
    if heads is None:
        return array
    return array.reshape(heads, -1, 2, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
