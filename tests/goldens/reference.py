"""The decoder of DeepSeekMoE-16B in plain PyTorch: a reference to compare with, not meant to be fast.

Llama's layers (arXiv:2302.13971), some with routed and shared experts (arXiv:2401.06066, section 3).  Every expert
computes every token, keys are repeated for every head, and there is no cache, so it shares no trick with our code.

B sequences  S tokens  H heads  d head width  K experts a token
"""

import math

import torch
from torch.nn import functional


def positions(mask_BS: torch.Tensor) -> torch.Tensor:
    """Positions [B, S], counted from each row's first token that is not padding."""
    return (mask_BS.cumsum(-1) - 1).clamp(min=0)


class Reference:
    """A model with `parameters` by their names in a checkpoint.

    After a call, `states` has the hidden states before and after each layer, and `choices` each router's (experts,
    weights).  `smallest_gap`, over all calls, is the smallest margin by which a router chose, relative to its best
    score.
    """

    def __init__(self, config: dict, parameters: dict[str, torch.Tensor]):
        self.config, self.parameters = config, parameters
        self.states, self.choices, self.smallest_gap = [], {}, math.inf

    def __call__(self, ids_BS: torch.Tensor, mask_BS: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(logits, state after the final norm); tokens where the mask is 0 are not attended to."""
        x = self.parameters["model.embed_tokens.weight"][ids_BS]
        self.states, self.choices = [x], {}
        for layer in range(self.config["num_hidden_layers"]):
            prefix = f"model.layers.{layer}."
            x = x + self.attention(prefix + "self_attn.", self.norm(prefix + "input_layernorm", x), mask_BS)
            h = self.norm(prefix + "post_attention_layernorm", x)
            routed = f"{prefix}mlp.gate.weight" in self.parameters
            x = x + (self.mixture(layer, h) if routed else self.mlp(prefix + "mlp.", h))
            self.states.append(x)
        hidden = self.norm("model.norm", x)
        return self.linear("lm_head", hidden), hidden

    def linear(self, name, x):
        return functional.linear(x, self.parameters[f"{name}.weight"], self.parameters.get(f"{name}.bias"))

    def norm(self, name, x):
        rms = torch.sqrt((x * x).mean(-1, keepdim=True) + self.config["rms_norm_eps"])
        return x / rms * self.parameters[f"{name}.weight"]

    def mlp(self, prefix, x):
        active = functional.silu(self.linear(prefix + "gate_proj", x)) * self.linear(prefix + "up_proj", x)
        return self.linear(prefix + "down_proj", active)

    def attention(self, prefix, x, mask_BS):
        H, S = self.config["num_attention_heads"], x.shape[1]
        d = x.shape[2] // H
        q, k, v = (self.linear(f"{prefix}{part}_proj", x).unflatten(-1, (-1, d)) for part in "qkv")
        q, k = (self.rotate(each, positions(mask_BS)) for each in (q, k))
        k, v = (each.repeat_interleave(H // each.shape[2], dim=2) for each in (k, v))
        scores = torch.einsum("bshd,bthd->bhst", q, k) / math.sqrt(d)
        seen = torch.ones(S, S).tril().bool() & (mask_BS[:, None, None, :] == 1)
        weights = torch.softmax(scores.masked_fill(~seen, torch.finfo(torch.float32).min), dim=-1)
        return self.linear(f"{prefix}o_proj", torch.einsum("bhst,bthd->bshd", weights, v).flatten(2))

    def rotate(self, x, positions_BS):
        """Rotates dimensions i and i + d/2, as a complex number, by position * theta^(-2i/d)."""
        half = x.shape[-1] // 2
        speeds = self.config["rope_theta"] ** (-torch.arange(half) / half)
        angles = (positions_BS[..., None] * speeds)[:, :, None]
        turned = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angles), angles)
        return torch.cat([turned.real, turned.imag], dim=-1)

    def mixture(self, layer, x):
        """Equations 9 to 11: softmax over all experts, of which the K best keep their share, plus shared experts."""
        prefix, K = f"model.layers.{layer}.mlp.", self.config["num_experts_per_tok"]
        scores = torch.softmax(self.linear(prefix + "gate", x), dim=-1)
        best, order = scores.sort(dim=-1, descending=True)
        weights, experts = best[..., :K], order[..., :K]
        self.choices[layer] = experts.flatten(0, 1), weights.flatten(0, 1)
        gap = (best[..., K - 1] - best[..., K]) / best[..., 0]
        self.smallest_gap = min(self.smallest_gap, gap.min().item())
        y = self.mlp(prefix + "shared_experts.", x)
        for expert in range(self.config["n_routed_experts"]):
            weight = (weights * (experts == expert)).sum(-1, keepdim=True)
            y = y + weight * self.mlp(f"{prefix}experts.{expert}.", x)
        return y
