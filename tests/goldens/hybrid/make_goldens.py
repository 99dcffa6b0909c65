"""Makes expected.npz beside this file: what PyTorch computes with the hybrid network's parts and with the whole.

    python tests/goldens/hybrid/make_goldens.py

Needs torch (written against 2.13.0); the tests do not.  Keys of a case: CASE/x, CASE/y, CASE/dy (drawn at random),
CASE/dx, CASE/weight/NAME and CASE/gradient/NAME by PyTorch's names, and further arguments of a case.  The gradients
are those of (y * dy).sum().
"""

import json
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

HERE = Path(__file__).parent
B, S = 3, 7  # records, and steps of a sequence


class Packed(nn.Module):
    """An LSTM or GRU over sequences of unequal lengths; `once` zeroes biases that duplicate others."""

    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU], **options):
        super().__init__()
        self.net = kind(input_size=5, hidden_size=6, batch_first=True, **options)

    def once(self):
        for name, parameter in self.net.named_parameters():
            if name.startswith("bias_hh"):
                parameter.data[: 12 if isinstance(self.net, nn.GRU) else 24] = 0
        return self

    def forward(self, x, lengths):
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(self.net(packed)[0], batch_first=True, total_length=x.shape[1])[0]


class Attention(nn.Module):
    """torch's attention, whose heads divide the features; outputs of padded steps are set to zero."""

    def __init__(self):
        super().__init__()
        self.net = nn.MultiheadAttention(embed_dim=24, num_heads=4, batch_first=True)

    def forward(self, x, lengths):
        real = torch.arange(x.shape[1]) < lengths[:, None]
        return self.net(x, x, x, key_padding_mask=~real)[0] * real[..., None]


class Reference(nn.Module):
    """32 3 x 3 filters, a 2 x 2 pool, an LSTM of 64 over the cells, 4 heads of 64, 10 classes from the last step."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(1, 32, 3, padding=1)
        self.recurrent = nn.LSTM(32, 64, batch_first=True)
        self.qkv, self.out = nn.Linear(64, 3 * 256), nn.Linear(256, 64)
        self.head = nn.Linear(64, 10)

    def once(self):
        self.recurrent.bias_hh_l0.data.zero_()
        return self

    def forward(self, x):
        x = functional.max_pool2d(functional.relu(self.convolution(x)), 2).flatten(2).mT
        x, _ = self.recurrent(x)
        q, k, v = self.qkv(x).unflatten(-1, (3, 4, 64)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head(self.out(mixed)[:, -1])


def computed(case: str, function, x: torch.Tensor, **given) -> dict[str, np.ndarray]:
    """The arrays of one case, by key, for a module or a plain function."""
    weights = dict(function.named_parameters()) if isinstance(function, nn.Module) else {}
    weights = {name: weight for name, weight in weights.items() if weight.requires_grad}
    x = x.requires_grad_()
    y = function(x, **given)
    dy = torch.randn(y.shape)
    dx, *gradients = torch.autograd.grad((y * dy).sum(), [x, *weights.values()])
    found = {"x": x, "y": y, "dy": dy, "dx": dx} | given
    found |= {f"weight/{name}": weight for name, weight in weights.items()}
    found |= {f"gradient/{name}": gradient for name, gradient in zip(weights, gradients, strict=True)}
    # Copies, as the running averages go on changing.
    return {f"{case}/{name}": np.array(value.detach().numpy()) for name, value in found.items()}


def recurrent() -> dict[str, np.ndarray]:
    arrays, lengths = {}, torch.tensor([4, S, 1])
    for name, kind in (("lstm", nn.LSTM), ("gru", nn.GRU)):
        arrays |= computed(name, Packed(kind).once(), torch.randn(B, S, 5), lengths=torch.full((B,), S))
        deep = Packed(kind, num_layers=2, bidirectional=True).once()
        arrays |= computed(f"{name}_deep", deep, torch.randn(B, S, 5), lengths=lengths)
    return arrays


def convolution() -> dict[str, np.ndarray]:
    arrays = computed("conv2d", nn.Conv2d(4, 6, 3, padding="same"), torch.randn(B, 4, 5, 8))
    arrays |= computed("conv2d_even", nn.Conv2d(2, 3, 4, padding="same"), torch.randn(B, 2, 6, 5))
    arrays |= computed("conv1d", nn.Conv1d(3, 4, 5, padding="same"), torch.randn(B, 3, 9))
    x, up = torch.randn(B, 4, 5, 8), {"ceil_mode": True}
    arrays |= computed("max_pool", lambda x: functional.max_pool2d(x, 3, **up), x)
    arrays |= computed("average_pool", lambda x: functional.avg_pool2d(x, 3, count_include_pad=False, **up), x)
    return arrays


def batch_norm() -> dict[str, np.ndarray]:
    """Training, then inference with the running averages that it left; they start at 0 and 1, with momentum 0.1."""
    norm = nn.BatchNorm2d(4)
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    arrays = computed("batch_norm", norm, 2 + 3 * torch.randn(B, 4, 5, 8))
    arrays |= {"batch_norm/mean": norm.running_mean.numpy().copy(), "batch_norm/variance": norm.running_var.numpy()}
    return arrays | computed("batch_norm_inference", norm.eval(), torch.randn(B, 4, 5, 8))


def attention() -> dict[str, np.ndarray]:
    module = Attention()
    nn.init.normal_(module.net.in_proj_bias), nn.init.normal_(module.net.out_proj.bias)
    return computed("attention", module, torch.randn(B, S, 24), lengths=torch.tensor([4, S, 1]))


if __name__ == "__main__":
    torch.manual_seed(0)
    arrays = recurrent() | convolution() | batch_norm() | attention()
    arrays |= computed("model", Reference().once(), torch.randn(B, 1, 8, 8))
    meta = {"seed": 0, "versions": {"torch": torch.__version__}}
    np.savez_compressed(HERE / "expected.npz", **arrays, meta=np.array(json.dumps(meta)))
