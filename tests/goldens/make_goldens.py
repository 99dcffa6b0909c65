"""Makes tests/goldens/v1 and tests/goldens/moe: tiny random checkpoints, and what other programs compute with them.

    python tests/goldens/make_goldens.py

Needs torch and transformers (written against 2.13.0 and 5.23.0); the tests need neither.

v1   DeepSeek-LLM by transformers' LlamaForCausalLM, with grouped keys and every bias that a Llama can have
moe  DeepSeekMoE-16B, of which transformers has no model, by reference.py; on v1 that must agree with transformers

A seed is used only if no choice of experts and no greedy token is so close to a tie that rounding could flip it.
"""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import torch
import transformers
from reference import Reference, positions
from safetensors.torch import save_file
from torch.nn import functional

HERE = Path(__file__).parent
SEQUENCES, TOKENS, PROMPT, NEW_TOKENS, PADDING = 2, 64, 21, 16, 11
SMALLEST_TOPK_GAP, SMALLEST_ARGMAX_GAP = 2e-5, 1e-3  # relative to the largest score or logit

LLAMA = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 88,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "bos_token_id": 0,
    "eos_token_id": 1,
}
V1 = LLAMA | {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-2,
    "attention_bias": True,
    "mlp_bias": True,
}
MOE = LLAMA | {
    "architectures": ["DeepseekForCausalLM"],
    "model_type": "deepseek",
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "moe_intermediate_size": 20,
    "n_routed_experts": 12,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "norm_topk_prob": False,
    "scoring_func": "softmax",
    "aux_loss_alpha": 0.001,
    "seq_aux": True,
}
WHOLE_GRADIENTS = {  # kept whole; of the others only the norms
    "v1": "embed_tokens.weight layers.2.self_attn.q_proj.weight layers.2.self_attn.k_proj.weight "
    "layers.2.self_attn.v_proj.bias layers.2.mlp.gate_proj.bias",
    "moe": "embed_tokens.weight layers.2.self_attn.q_proj.weight layers.2.mlp.gate.weight "
    "layers.2.mlp.experts.0.down_proj.weight layers.2.mlp.shared_experts.down_proj.weight",
}


class Llama:
    """transformers' Llama with the interface of `Reference`."""

    choices, smallest_gap = {}, math.inf

    def __init__(self, config: dict, parameters: dict[str, torch.Tensor]):
        self.config = transformers.LlamaConfig(**config, attn_implementation="eager")
        self.model = transformers.LlamaForCausalLM(self.config).float().eval()
        self.model.load_state_dict(parameters)
        self.parameters = dict(self.model.named_parameters())

    def __call__(self, ids_BS, mask_BS):
        last = []  # the last layer's output, as transformers' last hidden state has passed the final norm
        hook = self.model.model.layers[-1].register_forward_hook(lambda module, given, out: last.append(out))
        out = self.model(ids_BS, attention_mask=mask_BS, position_ids=positions(mask_BS), output_hidden_states=True)
        hook.remove()
        self.states = [*out.hidden_states[:-1], *last]
        return out.logits, out.hidden_states[-1]


def parameter_shapes(config: dict) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter, by its name in a checkpoint."""
    V, D = config["vocab_size"], config["hidden_size"]
    G_d = D // config["num_attention_heads"] * config["num_key_value_heads"]
    shapes = {"model.embed_tokens.weight": (V, D), "model.norm.weight": (D,), "lm_head.weight": (V, D)}

    def linear(name, out, into, bias):
        shapes[f"{name}.weight"] = (out, into)
        if bias:
            shapes[f"{name}.bias"] = (out,)

    def mlp(name, width, bias=False):
        for part, out, into in (("gate", width, D), ("up", width, D), ("down", D, width)):
            linear(f"{name}.{part}_proj", out, into, bias)

    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{prefix}.{norm}.weight"] = (D,)
        for part, out in (("q", D), ("k", G_d), ("v", G_d), ("o", D)):
            linear(f"{prefix}.self_attn.{part}_proj", out, D, config["attention_bias"])
        if layer < config.get("first_k_dense_replace", math.inf):
            mlp(f"{prefix}.mlp", config["intermediate_size"], config.get("mlp_bias", False))
            continue
        linear(f"{prefix}.mlp.gate", config["n_routed_experts"], D, bias=False)
        for expert in range(config["n_routed_experts"]):
            mlp(f"{prefix}.mlp.experts.{expert}", config["moe_intermediate_size"])
        mlp(f"{prefix}.mlp.shared_experts", config["n_shared_experts"] * config["moe_intermediate_size"])
    return shapes


def random_parameters(config: dict, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Random parameters so large that every part matters; with small ones, errors could go unnoticed."""

    def draw(name, shape):
        if "norm" in name:
            return torch.rand(shape, generator=generator) + 0.5
        scale = 0.3 if name.endswith(".bias") else 1.0 if "embed" in name else 1 / math.sqrt(shape[-1])
        return scale * torch.randn(shape, generator=generator)

    return {name: draw(name, shape).requires_grad_() for name, shape in parameter_shapes(config).items()}


def expected(model: Reference | Llama, ids_BS: torch.Tensor, whole: list[str], prompt=PROMPT) -> dict[str, np.ndarray]:
    """The arrays that README.md lists; `whole` names the gradients to keep whole."""
    logits, hidden = model(ids_BS, torch.ones_like(ids_BS))
    loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids_BS[:, 1:].flatten())
    found = {"input_ids": ids_BS.int(), "logits": logits, "loss": loss, "final_hidden": hidden}
    found |= {f"hs_{layer}": state for layer, state in enumerate(model.states)}
    for layer, (experts, weights) in model.choices.items():
        found |= {f"router_{layer}_indices": experts, f"router_{layer}_weights": weights}
    names = list(model.parameters)
    given = list(model.parameters.values())
    grads = dict(zip(names, torch.autograd.grad(loss, given, materialize_grads=True), strict=True))
    found |= {"grad_names": np.array(names), "grad_norms": np.array([grads[name].norm().item() for name in names])}
    found |= {f"grad__{name}": grads[name] for name in whole}
    with torch.no_grad():
        found |= greedy(model, ids_BS[:, :prompt]) | left_padded(model, ids_BS)
    return {name: value.detach().numpy() if torch.is_tensor(value) else value for name, value in found.items()}


def greedy(model: Reference | Llama, ids_BS: torch.Tensor) -> dict:
    """The greedy continuation of a prompt, by a full forward pass for each token, so that no cache can be wrong."""
    steps, prompt = [], ids_BS.shape[1]
    for _ in range(NEW_TOKENS):
        steps.append(model(ids_BS, torch.ones_like(ids_BS))[0][:, -1])
        ids_BS = torch.cat([ids_BS, steps[-1].argmax(-1, keepdim=True)], dim=1)
    tokens = ids_BS[:, prompt:].int()
    return {"gen_prompt_len": np.int64(prompt), "gen_tokens": tokens, "gen_logits": torch.stack(steps, dim=1)}


def left_padded(model: Reference | Llama, ids_BS: torch.Tensor) -> dict:
    mask_BS, ids_BS = torch.ones_like(ids_BS), ids_BS.clone()
    mask_BS[1, :PADDING] = ids_BS[1, :PADDING] = 0
    logits = model(ids_BS, mask_BS)[0]
    found = {"ids": ids_BS.int(), "mask": mask_BS.int(), "pos": positions(mask_BS).int(), "logits": logits}
    return {f"pad_{name}": value for name, value in found.items()}


def argmax_gap(logits: np.ndarray) -> float:
    best = np.sort(logits, axis=-1)
    return float(((best[..., -1] - best[..., -2]) / np.abs(logits).max(axis=-1)).min())


def make(name: str, config: dict, kind: type[Reference] | type[Llama]):
    """Writes the golden `name` with the first seed without near ties, and returns (parameters, arrays)."""
    whole = [f"model.{parameter}" for parameter in WHOLE_GRADIENTS[name].split()]
    for seed in itertools.count():
        generator = torch.Generator().manual_seed(seed)
        parameters = random_parameters(config, generator)
        ids_BS = torch.randint(2, config["vocab_size"], (SEQUENCES, TOKENS), generator=generator)
        model = kind(config, parameters)
        arrays = expected(model, ids_BS, whole)
        gaps = {"min_topk_gap": model.smallest_gap, "min_argmax_gap": argmax_gap(arrays["gen_logits"])}
        if gaps["min_topk_gap"] > SMALLEST_TOPK_GAP and gaps["min_argmax_gap"] > SMALLEST_ARGMAX_GAP:
            break
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    meta = {"seed": seed, **gaps, "versions": versions, "by": kind.__name__}
    directory = HERE / name
    directory.mkdir(exist_ok=True)
    save_file(parameters, directory / "model.safetensors", metadata={"format": "pt"})
    np.savez_compressed(directory / "expected.npz", **arrays, meta=np.array(json.dumps(meta)))
    for file, values in spellings(model, config).items():
        (directory / file).write_text(json.dumps(values, indent=2) + "\n")
    return parameters, arrays


def spellings(model: Reference | Llama, config: dict) -> dict[str, dict]:
    """config.json files by name: as transformers writes it, if it knows the model, and as DeepSeek does."""
    if isinstance(model, Reference):
        return {"config.json": config}
    return {"config.json": model.config.to_diff_dict(), "config_hub_style.json": config}


def check_reference(config: dict, parameters: dict[str, torch.Tensor], arrays: dict[str, np.ndarray]):
    """Checks that the reference computes what transformers' Llama does, on a model without experts."""
    ours = expected(Reference(config, parameters), torch.from_numpy(arrays["input_ids"]).long(), [])
    order = [list(arrays["grad_names"]).index(name) for name in ours.pop("grad_names")]
    np.testing.assert_allclose(ours.pop("grad_norms"), arrays["grad_norms"][order], rtol=1e-4)
    real = arrays["pad_mask"] == 1
    np.testing.assert_allclose(ours.pop("pad_logits")[real], arrays["pad_logits"][real], atol=1e-4)
    for name, value in ours.items():
        np.testing.assert_allclose(value, arrays[name], atol=1e-4, err_msg=name)


if __name__ == "__main__":
    check_reference(V1, *make("v1", V1, Llama))
    make("moe", MOE, Reference)
