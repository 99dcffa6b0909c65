"""Attention with the sequence spread over devices: what one device computes, and nothing travels that need not."""

import json
import math

import pytest

from deepseek_jax.models.config import ModelConfig
from tests.sharding.attentions import BATCH, CASES, LENGTH

QUICK = ["data=2,context=4"]
REST = ["context=8", "fsdp=2,context=2,tensor=2"]


@pytest.fixture(scope="module")
def findings(python):
    """findings(meshes) -> {mesh: {case: findings}}, all in one process."""
    known = {}

    def run(meshes: list[str]) -> dict:
        if (key := tuple(meshes)) not in known:
            result = python("-m", "tests.sharding.attentions", *meshes, devices=8)
            assert result.returncode == 0, result.stderr
            known[key] = json.loads(result.stdout)
        return known[key]

    return run


@pytest.mark.parametrize("mesh", QUICK)
@pytest.mark.parametrize("case", CASES)
def test_attention(findings, case, mesh):
    check(findings(QUICK)[mesh][case]["errors"])


@pytest.mark.slow
@pytest.mark.parametrize("mesh", REST)
@pytest.mark.parametrize("case", CASES)
def test_attention_on_every_mesh(findings, case, mesh):
    check(findings(REST)[mesh][case]["errors"])


def check(errors: dict[str, float]):
    """Of value, outputs and all gradients: documents and windows of these rows lie across every boundary."""
    wrong = {name: error for name, error in errors.items() if not error < 1e-5}
    assert not wrong


@pytest.mark.parametrize("case", CASES)
def test_no_more_travels_than_others_attend_to(findings, case):
    """Bytes of everything gathered, handed on, and in the backward pass summed, on data=2,context=4."""
    found = findings(QUICK)["data=2,context=4"][case]["travelling"]
    kind, config = CASES[case].kind, CASES[case].config
    gathered, handed_on = attended_to(kind, config, devices=4)
    rows = 4 * BATCH // 2  # float32, of half of the batch
    assert found.get("all-gather", []) == sorted(rows * numbers for numbers in gathered)
    assert found.get("reduce-scatter", []) == sorted(rows * numbers // 4 for numbers in gathered)
    assert sum(found.get("collective-permute", [])) == 2 * rows * handed_on  # there, and gradients back
    assert "all-to-all" not in found


def attended_to(kind: str, config: ModelConfig, devices: int) -> tuple[list[int], int]:
    """Numbers a row: of each array that every device needs whole; all that one is handed by another."""
    latents = LENGTH * (config.kv_lora_rank + config.qk_rope_head_dim)
    swapped = LENGTH // devices // 2 * config.num_attention_heads  # queries of half of the tokens, and what they mixed
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
