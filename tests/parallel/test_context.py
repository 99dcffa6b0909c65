"""Attention with the sequence sharded (mesh.context): equal to one device, with no needless communication."""

import math

import pytest

from deepseek_jax.models.config import ModelConfig
from tests.parallel import attentions
from tests.parallel.attentions import BATCH, CASES, LENGTH

QUICK = ["data=2,context=4"]
REST = ["context=8", "fsdp=2,context=2,tensor=2"]


@pytest.fixture(scope="module")
def findings(on_devices):
    """findings(meshes) -> {mesh: {case: {"errors", "travelling"}}}, computed in one process and remembered."""
    known = {}

    def run(meshes: list[str]) -> dict:
        if (key := tuple(meshes)) not in known:
            known[key] = on_devices(8, attentions.on_meshes, *meshes)
        return known[key]

    return run


@pytest.mark.parametrize("mesh", QUICK)
@pytest.mark.parametrize("case", CASES)
def test_sharded_attention_equals_that_of_one_device(findings, case, mesh):
    check(findings(QUICK)[mesh][case]["errors"])


@pytest.mark.slow
@pytest.mark.parametrize("mesh", REST)
@pytest.mark.parametrize("case", CASES)
def test_attention_on_more_meshes(findings, case, mesh):
    check(findings(REST)[mesh][case]["errors"])


@pytest.mark.slow
def test_the_kernels_of_a_tpu_on_a_mesh(on_devices):
    """Interpreted.  Windows and documents cross device boundaries, and each device has half of the heads."""
    for errors in on_devices(8, attentions.by_kernels, "data=2,context=2,tensor=2").values():
        check(errors)


def check(errors: dict[str, float]):
    """Compares the value, outputs and all gradients; documents and windows of the rows cross device boundaries."""
    wrong = {name: error for name, error in errors.items() if not error < 1e-5}
    assert not wrong


@pytest.mark.parametrize("case", CASES)
def test_devices_exchange_only_what_others_attend_to(findings, case):
    """Compares the bytes gathered, passed between neighbours, and reduced in the backward pass, on data=2,context=4."""
    found = findings(QUICK)["data=2,context=4"][case]["travelling"]
    kind, config = CASES[case].kind, CASES[case].config
    gathered, handed_on = attended_to(kind, config, devices=4)
    rows = 4 * BATCH // 2  # 4 bytes per number, for half of the batch
    assert found.get("all-gather", []) == sorted(rows * numbers for numbers in gathered)
    assert found.get("reduce-scatter", []) == sorted(rows * numbers // 4 for numbers in gathered)
    assert sum(found.get("collective-permute", [])) == 2 * rows * handed_on  # forwards, and gradients back
    assert "all-to-all" not in found


def attended_to(kind: str, config: ModelConfig, devices: int) -> tuple[list[int], int]:
    """Numbers per row: (of each array that every device gathers whole, in total received by collective-permute)."""
    latents = LENGTH * (config.kv_lora_rank + config.qk_rope_head_dim)
    swapped = LENGTH // devices // 2 * config.num_attention_heads  # half of the queries, and their outputs, are swapped
    if kind == "gqa":
        return [LENGTH * config.num_key_value_heads * config.head_dim] * 2, swapped * 2 * config.head_dim
    if kind == "mla":
        return [latents], swapped * (config.qk_head_dim + config.v_head_dim)
    if kind == "dsa":
        return [latents, LENGTH * config.index_head_dim], 0
    window = config.sliding_window * config.head_dim
    if kind == "window":
        return [], window
    rate, runs, widths = {
        "hca": (config.hca_rate, 1, [config.head_dim]),
        "csa": (config.csa_rate, 2, [config.head_dim, config.index_head_dim]),
    }[kind]
    entries = devices * math.ceil(LENGTH / devices / rate)
    contents_and_gates = (runs * rate - 1) * 2 * runs
    return [entries * width for width in widths], window + sum(contents_and_gates * width for width in widths)
