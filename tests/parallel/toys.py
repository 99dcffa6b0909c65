"""Programs for eight devices, which compare steps of tests/train/toy.py with those of one device."""

import dataclasses

import jax
import numpy as np
import optax

from deepseek_jax.config import MeshConfig
from deepseek_jax.train.optim import optimizer
from tests.train import toy

MESH = MeshConfig(data=2, fsdp=4)


def adamw():
    """Parameters, moments and EMA after three steps."""
    config = toy.with_optimizer(toy.experiment(ema_decay=0.9), name="adamw", weight_decay=0.1, clip_norm=1.0)
    spread = dataclasses.replace(config, mesh=MESH)
    assert len(jax.devices()) == 8
    (one, one_step), (many, many_step) = toy.start(config, devices=jax.devices()[:1]), toy.start(spread)
    kernel = many["params"]["kernel"]
    assert len(kernel.addressable_shards) == 8 and kernel.addressable_shards[0].data.shape == (1,), kernel.sharding
    moment = many["opt_state"][1].mu["kernel"]
    assert moment.sharding == kernel.sharding, "moments lie as their parameters do"
    for seed in range(3):
        batch = toy.batch(2, 8, seed)
        one, expected = one_step(one, batch)
        many, found = many_step(many, batch)
    assert many["params"]["kernel"].sharding == kernel.sharding
    for left, right in zip(jax.tree.leaves((one, expected)), jax.tree.leaves((many, found)), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-5)


def state_of_other_shapes() -> list[int]:
    """For optimizers whose state has not only the shapes of parameters: how many different shardings it has."""
    directions = optax.scale_by_factored_rms(min_dim_size_to_factor=1), optax.scale_by_sm3(), optax.scale_by_lbfgs()
    one_device, spread = toy.experiment(), dataclasses.replace(toy.experiment(), mesh=MESH)
    shardings = []
    for direction in directions:
        optimizer.DIRECTIONS["sgd"] = lambda config, steps, axes, direction=direction: direction
        (one, one_step), (many, many_step) = toy.start(one_device, devices=jax.devices()[:1]), toy.start(spread)
        for seed in range(2):
            one, many = one_step(one, toy.batch(2, 8, seed))[0], many_step(many, toy.batch(2, 8, seed))[0]
        for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True):
            np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-6)
        shardings.append(len({leaf.sharding.spec for leaf in jax.tree.leaves(many["opt_state"])}))
    return shardings
