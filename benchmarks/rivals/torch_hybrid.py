"""The reference hybrid network in PyTorch, float32, all cores: what benchmarks/ours/hybrid.py trains.

Needs torch, not this package; answers through serve.py.
"""

import functools
import os

import torch
from serve import Stopwatch, serve
from torch import nn
from torch.nn import functional

STEPS = {"rows": (14, 14 * 32), "cells": (14 * 14, 32)}  # of the sequence, and the features of each


class Reference(nn.Module):
    """32 filters of 3 x 3, a pool of 2 x 2, an LSTM of 64, 4 heads of 64, classes from the last step."""

    def __init__(self, sequence):
        super().__init__()
        self.steps, features = STEPS[sequence]
        self.convolution = nn.Conv2d(1, 32, 3, padding=1)
        self.recurrent = nn.LSTM(features, 64, batch_first=True)
        self.qkv, self.out, self.head = nn.Linear(64, 3 * 256), nn.Linear(256, 64), nn.Linear(64, 10)

    def forward(self, images, only_last):
        x = functional.max_pool2d(functional.relu(self.convolution(images)), 2)
        x, _ = self.recurrent(x.permute(0, 2, 3, 1).reshape(len(images), self.steps, -1))
        q, k, v = self.qkv(x).unflatten(-1, (3, 4, 64)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q[:, :, -1:] if only_last else q, k, v)
        return self.head(self.out(mixed.transpose(1, 2).flatten(2))[:, -1])


@functools.cache
def trainer(sequence):
    torch.manual_seed(0)
    model = Reference(sequence)
    return model, torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-4)


def play(sequence, batch, steps, only_last=False):
    model, optimizer = trainer(sequence)
    images, labels = torch.rand(batch, 1, 28, 28), torch.randint(0, 10, (batch,))
    stopwatch = Stopwatch()
    for _ in range(steps):
        with stopwatch:
            loss = functional.cross_entropy(model(images, only_last), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            loss.item()
    return stopwatch.measured


if __name__ == "__main__":
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    parameters = {name: sum(each.numel() for each in trainer(name)[0].parameters()) for name in STEPS}
    serve({"program": f"torch {torch.__version__}", "parameters": parameters}, play)
