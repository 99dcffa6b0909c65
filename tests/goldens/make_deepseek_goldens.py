"""Compares the goldens of DeepSeek-V2 to V4 with what transformers computes, or makes ones of the same sizes anew.

    python tests/goldens/make_deepseek_goldens.py                         # compares all that are named below
    python tests/goldens/make_deepseek_goldens.py v2 v3 --out somewhere   # new weights and results; --seed 7: others

Needs torch and transformers (written against 2.13.0 and 5.23.0); the tests need neither.

A golden's config.json is read for its sizes.  `v4` and `v4_r128` are not made, and only their logits, loss and choices
of experts are compared; `v3_fp8` and `v4_quant` are neither made nor compared: see README.md.

A seed is used only if slightly other weights lead to the same choices of experts and keys and the same greedy tokens:
rounding cannot flip one.
"""

import argparse
import itertools
import json
import math
import shutil
from pathlib import Path

import numpy as np
import torch
import transformers
from make_goldens import HERE, SMALLEST_ARGMAX_GAP, argmax_gap, expected
from reference import positions
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers.modeling_layers import MtpLayer

MADE = "v2_lite", "v2", "v2_plain", "v3", "v3_plain", "v32"
COMPARED = *MADE, "v4", "v4_r128"
ROUNDING = 1e-5  # relative change of the weights that must flip no choice


class DeepSeek:
    """A model of transformers with the interface of `reference.Reference`, and the choices of its indexers.

    `mtp`: its module for multi-token prediction, or None.
    """

    smallest_gap = math.inf

    def __init__(self, model: transformers.PreTrainedModel):
        self.model, self.config = model.float().eval(), model.config
        self.parameters = dict(model.named_parameters())
        self.choices, self.keys, self.states, self.mtp = {}, {}, [], None
        for number, layer in enumerate(model.model.layers):
            layer.register_forward_hook(lambda module, given, out: self.states.append(out))
            for module in layer.modules():
                if type(module).__name__.endswith("Router"):
                    module.register_forward_hook(self._choice_of(number))
                if type(module).__name__.endswith("Indexer"):
                    module.register_forward_hook(self._keys_of(number))
        if getattr(self.config, "num_nextn_predict_layers", 0) and self.config.model_type != "deepseek_v4":
            last = model.model.layers[-1]
            place = self.config.num_hidden_layers - 1  # where a layer has experts
            self.mtp = MtpLayer(self.config, type(last), type(model.model.norm), place).float().eval()

    def _choice_of(self, number):
        def note(module, given, out):
            self.choices[number] = out[2].int(), out[1]

        return note

    def _keys_of(self, number):
        def note(module, given, out):
            self.keys[number] = (out[0] if isinstance(out, tuple) else out).int()

        return note

    def __call__(self, ids_BS, mask_BS):
        self.states = []
        embedded = self.model.model.embed_tokens(ids_BS)
        out = self.model(ids_BS, attention_mask=mask_BS, position_ids=positions(mask_BS), use_cache=False)
        final = self.model.model.norm(self.states[-1]) if self.states[-1].ndim == 3 else None
        self.states.insert(0, embedded)
        return out.logits, final

    def predict_further(self, ids_BS, hidden_BSD) -> dict[str, torch.Tensor]:
        """What the module predicts of the token after next, from the final hidden states."""
        inner, later = self.model.model, ids_BS[:, 1:]
        length = later.shape[1]
        embedded, places = inner.embed_tokens(later), torch.arange(1, length + 1)[None]
        mask = torch.full((length, length), -math.inf).triu(1)[None, None]
        turns = inner.rotary_emb(embedded, places)
        hidden = self.mtp(embedded, hidden_BSD[:, :-1], turns, mask, places, None)
        logits = self.model.lm_head(hidden)
        loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids_BS[:, 2:].flatten())
        return {"mtp_hidden": hidden, "mtp_logits": logits, "mtp_loss": loss}


def results(model: DeepSeek, ids_BS: torch.Tensor, prompt: int, whole: list[str]) -> dict[str, np.ndarray]:
    """The arrays that README.md lists."""
    with torch.no_grad():
        _, hidden = model(ids_BS, torch.ones_like(ids_BS))
        further = model.predict_further(ids_BS, hidden) if model.mtp else {}
    found = {name: value.numpy() for name, value in further.items()}
    found |= {f"indexer_{layer}_indices": keys.numpy() for layer, keys in model.keys.items()}
    return found | expected(model, ids_BS, whole, prompt)


def compare(name: str):
    """Everything stored but padded batches; for V4 the logits, the loss and the choices of experts."""
    stored = dict(np.load(HERE / name / "expected.npz"))
    options = {"attn_implementation": "eager", "experts_implementation": "eager", "dtype": torch.float32}
    model = DeepSeek(transformers.AutoModelForCausalLM.from_pretrained(HERE / name, **options))
    ids_BS = torch.from_numpy(stored["input_ids"]).long()
    if model.config.model_type == "deepseek_v4":
        with torch.no_grad():
            logits, _ = model(ids_BS, torch.ones_like(ids_BS))
        found = {
            "logits": logits.numpy(),
            "loss": functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids_BS[:, 1:].flatten()),
        }
        found |= _routing(model)
    else:
        if model.mtp:
            model.mtp.load_state_dict(_fused(load_file(HERE / name / "model.safetensors"), model.config))
        whole = [key.removeprefix("grad__") for key in stored if key.startswith("grad__")]
        found = results(model, ids_BS, int(stored["gen_prompt_len"]), whole)
        assert {*stored} - {*found} <= {"meta"}, {*stored} - {*found}
        found["grad_norms"] = found["grad_norms"][[list(found["grad_names"]).index(n) for n in stored["grad_names"]]]
        found["grad_names"] = stored["grad_names"]
    for key, value in found.items():
        if key.startswith("pad_"):
            continue  # of other tokens, or with other padding
        ours, theirs = np.asarray(value), stored[key]
        if key.startswith("router_"):
            order = [
                np.argsort(each[f"{key.rpartition('_')[0]}_indices"].reshape(theirs.shape), 1)
                for each in (found, stored)
            ]
            ours, theirs = (
                np.take_along_axis(each, by, 1) for each, by in zip((ours.reshape(theirs.shape), theirs), order)
            )
        if key.startswith("indexer_"):
            visible = np.arange(theirs.shape[1])[:, None]
            ours, theirs = (np.sort(np.where(each <= visible, each, -1)) for each in (ours, theirs))
        if ours.dtype.kind == "f":
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5, err_msg=f"{name} {key}")
        else:
            np.testing.assert_array_equal(ours, theirs, err_msg=f"{name} {key}")
    print(f"{name}: {len(found)} arrays agree")


def make(name: str, out: Path, first: int):
    """Writes a golden of the sizes of `name` with the first seed from `first` on whose choices rounding cannot flip."""
    stored = np.load(HERE / name / "expected.npz")
    shape, prompt = stored["input_ids"].shape, int(stored["gen_prompt_len"])
    whole = [key.removeprefix("grad__") for key in stored if key.startswith("grad__")]
    config = transformers.AutoConfig.from_pretrained(HERE / name)
    options = {"attn_implementation": "eager", "experts_implementation": "eager"}
    for seed in itertools.count(first):
        generator = torch.Generator().manual_seed(seed)
        model = DeepSeek(transformers.AutoModelForCausalLM.from_config(config, **options))
        _randomise(model, generator)
        ids_BS = torch.randint(2, config.vocab_size, shape, generator=generator)
        weights = {key: value.clone() for key, value in model.model.state_dict().items()}
        arrays = results(model, ids_BS, prompt, whole)
        with torch.no_grad():
            for parameter in model.model.parameters():
                parameter.mul_(1 + ROUNDING * torch.randn(parameter.shape, generator=generator))
        again = results(model, ids_BS, prompt, [])
        chosen = [key for key in again if key.endswith(("_indices", "_tokens"))]
        same = all((np.sort(arrays[key]) == np.sort(again[key])).all() for key in chosen)
        if same and argmax_gap(arrays["gen_logits"]) > SMALLEST_ARGMAX_GAP:
            break
    model.model.load_state_dict(weights)
    directory = out / name
    directory.mkdir(parents=True, exist_ok=True)
    model.model.save_pretrained(directory)
    tensors = load_file(directory / "model.safetensors") | (_single(model) if model.mtp else {})
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    for file in ("config.json", "config_hub_style.json"):  # transformers leaves out what it does not know
        shutil.copy(HERE / name / file, directory)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    unused = [key for key, norm in zip(arrays["grad_names"].tolist(), arrays["grad_norms"], strict=True) if norm == 0]
    meta = {
        "seed": seed,
        "params_without_gradient": unused,
        "min_argmax_gap": argmax_gap(arrays["gen_logits"]),
        "versions": versions,
    }
    np.savez_compressed(directory / "expected.npz", **arrays, meta=np.array(json.dumps(meta)))
    print(f"{directory}: made with seed {seed}")


def _randomise(model: DeepSeek, generator: torch.Generator):
    """Random numbers so large that every part matters, also in the biases of routers, which are buffers."""
    modules = [model.model, *filter(None, [model.mtp])]
    arrays = [pair for module in modules for pair in (*module.named_parameters(), *module.named_buffers())]
    for name, array in arrays:
        if name.endswith("inv_freq"):
            continue
        if "norm" in name and not name.endswith("bias"):
            new = torch.rand(array.shape, generator=generator) + 0.5
        else:
            scale = 0.3 if name.endswith("bias") else 1.0 if "embed" in name else array.shape[-1] ** -0.5
            new = scale * torch.randn(array.shape, generator=generator)
        array.data.copy_(new)
    if model.config.tie_word_embeddings:
        model.model.tie_weights()


def _prefix(config) -> str:
    return f"model.layers.{config.num_hidden_layers}."


def _fused(tensors: dict[str, torch.Tensor], config) -> dict[str, torch.Tensor]:
    """The MTP module's parameters by transformers' names, from a checkpoint, where each expert has its own."""
    own = {name.removeprefix(_prefix(config)): t for name, t in tensors.items() if name.startswith(_prefix(config))}

    def of(part):
        return torch.stack([own.pop(f"mlp.experts.{e}.{part}_proj.weight") for e in range(config.n_routed_experts)])

    own["mlp.experts.gate_up_proj"] = torch.cat([of("gate"), of("up")], dim=1)
    own["mlp.experts.down_proj"] = of("down")
    own["post_norm.weight"] = own.pop("shared_head.norm.weight")
    del own["embed_tokens.weight"], own["shared_head.head.weight"]  # copies of the model's
    outside = "enorm.", "hnorm.", "eh_proj.", "post_norm."
    return {name if name.startswith(outside) else f"mtp_block.{name}": tensor for name, tensor in own.items()}


def _single(model: DeepSeek) -> dict[str, torch.Tensor]:
    """The opposite of `_fused`: what a checkpoint holds of the MTP module."""
    found = {}
    for name, tensor in model.mtp.state_dict().items():
        name = name.removeprefix("mtp_block.").replace("post_norm", "shared_head.norm")
        if ".experts." not in name:
            found[name] = tensor
            continue
        parts = tensor.chunk(2, dim=1) if name.endswith("gate_up_proj") else [tensor]
        for part, matrices in zip(("gate", "up") if len(parts) == 2 else ("down",), parts, strict=True):
            found |= {f"mlp.experts.{e}.{part}_proj.weight": matrix for e, matrix in enumerate(matrices)}
    found["embed_tokens.weight"] = model.model.model.embed_tokens.weight.detach()
    found["shared_head.head.weight"] = model.model.lm_head.weight.detach()
    return {_prefix(model.config) + name: tensor.clone().contiguous() for name, tensor in found.items()}


def _routing(model: DeepSeek) -> dict[str, np.ndarray]:
    names = "indices", "weights"
    return {
        f"router_{layer}_{name}": each.numpy()
        for layer, choice in model.choices.items()
        for name, each in zip(names, choice, strict=True)
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="GOLDEN", help=", ".join(COMPARED))
    parser.add_argument("--out", type=Path, metavar="DIR", help="make new ones there, instead of comparing")
    parser.add_argument("--seed", type=int, default=0, help="the first that is tried")
    args = parser.parse_args()
    for name in args.names or (MADE if args.out else COMPARED):
        make(name, args.out, args.seed) if args.out else compare(name)
