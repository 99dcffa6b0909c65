"""Parameter counts of every released model against known numbers, exactly; caches and attention against hand counts."""

import dataclasses
import json

import pytest

from deepseek_jax.errors import UserError
from deepseek_jax.models.counts import cache_made, cache_size, census, multi_head_cache
from deepseek_jax.models.flops import attention_a_token
from deepseek_jax.models.presets import PRESETS, preset
from tests.paths import GOLDENS

KNOWN = json.loads((GOLDENS / "param_counts.json").read_text())
GROUPS = {  # our names -> those in param_counts.json
    "embedding": "embed",
    "attention": "attention",
    "compressor": "compressor",
    "indexer": "indexer",
    "dense feed-forward": "dense_mlp",
    "norms": "norms",
    "routed experts": "routed_experts",
    "router": "router",
    "shared experts": "shared_experts",
    "hyper-connections": "mHC",
    "head": "lm_head",
}
FROM_PARTS = {  # the first models, by hand: 2 V D + L (attention + feed-forward + 2 D) + D
    "v1-7b": 2 * 102400 * 4096 + 30 * (4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096) + 4096,
    "v1-67b": 2 * 102400 * 8192 + 95 * (2 * 8192**2 + 2 * 8192 * 1024 + 3 * 8192 * 22016 + 2 * 8192) + 8192,
    "moe-16b": 2 * 102400 * 2048
    + 28 * (4 * 2048**2 + 2 * 2048)
    + 3 * 2048 * 10944
    + 27 * (2048 * 64 + 66 * 3 * 2048 * 1408)
    + 2048,
}


@pytest.mark.parametrize("name", KNOWN)
def test_parameters_of_the_released_models(name):
    known, found = KNOWN[name], census(preset(name))
    assert {GROUPS[group]: size for group, size in found.main.groups.items()} == known["breakdown"]
    assert (found.main.total, found.main.activated) == (known["total"], known["activated"])
    mtp = known["mtp"] or {"total": 0, "activated_excl_embed_head": 0}
    assert (found.mtp.total, found.mtp.activated) == (mtp["total"], mtp["activated_excl_embed_head"])


@pytest.mark.parametrize("name", KNOWN)
def test_buffers_of_the_released_models(name):
    """Of the main model alone; each MTP module adds a router's bias."""
    config = preset(name).without_mtp()
    assert census(config).buffers == sum(KNOWN[name]["buffers"].values())


@pytest.mark.parametrize("name", KNOWN)
def test_presets_agree_with_the_released_configs(name):
    config = preset(name)
    own_words = ("compress_ratios", "rope_parameters", "rope_scaling", "num_key_value_heads", "q_lora_rank")
    for key, value in KNOWN[name]["config"].items():
        assert key in own_words or getattr(config, key) == value, key
    rates = {"window": 0, "csa": config.csa_rate, "hca": config.hca_rate}
    kinds = config.without_mtp().attention_kinds
    assert (
        "compress_ratios" not in KNOWN[name]["config"]
        or [rates[kind] for kind in kinds] == (KNOWN[name]["config"]["compress_ratios"])
    )


@pytest.mark.parametrize("name", FROM_PARTS)
def test_parameters_of_the_first_models(name):
    assert census(preset(name)).main.total == FROM_PARTS[name]


def test_preset_names_are_case_insensitive_and_unknown_ones_refused():
    assert preset("V4-Pro") == PRESETS["v4-pro"] and preset("r1") == preset("v3.1") == preset("v3")
    with pytest.raises(UserError, match="no released model 'v5'.*v4-pro"):
        preset("v5")


@pytest.mark.parametrize(
    "name, growing, constant",
    [
        ("v1-7b", 30 * 2 * 32 * 128, 0),
        ("v1-67b", 95 * 2 * 8 * 128, 0),
        ("v3", 61 * (512 + 64), 0),  # V2, section 2.1.4
        ("v3.2", 61 * (512 + 64 + 128), 0),
        ("v4-pro", 30 * (512 + 128) / 4 + 31 * 512 / 128, 61 * 128 * 512),
    ],
)
def test_cache_sizes(name, growing, constant):
    assert cache_size(preset(name)) == (growing, constant)


def test_compression_rates_of_unused_attention_kinds_may_be_zero():
    config = preset("v3")
    assert cache_size(dataclasses.replace(config, csa_rate=0, hca_rate=0)) == cache_size(config)


def test_cache_made_includes_what_generation_adds():
    assert cache_made(preset("v3"), 1024) == 1024 * cache_size(preset("v3"))[0]
    csa = (2 * 4 + 8) * 4 * (512 + 128)  # keys and gates, of double width, for two runs of 4 tokens and 8 drafts
    hca = (128 + 8) * 2 * 512
    growing, constant = cache_size(preset("v4-pro"))
    assert cache_made(preset("v4-pro"), 1024) == 1024 * growing + constant + 61 * 8 * 512 + 30 * csa + 31 * hca


def test_multi_head_cache_is_what_plain_attention_would_cache():
    assert multi_head_cache(preset("v1-67b")) == 8 * cache_size(preset("v1-67b"))[0]
    assert multi_head_cache(preset("v3")) == 61 * 128 * (128 + 64 + 128)


@pytest.mark.parametrize(
    "kind, seen, pairs, scored",
    [
        ("gqa", 10, 10 * 2 * 8, 0),
        ("dsa", 3, 3 * (6 + 5), 3),
        ("dsa", 10, 4 * (6 + 5), 10),  # the indexer scores all 10 keys and keeps index_topk
        ("window", 10, 6 * 2 * 8, 0),
        ("csa", 11, (6 + 4) * 2 * 8, 5),
        ("csa", 5, (5 + 2) * 2 * 8, 2),
        ("hca", 11, (6 + 3) * 2 * 8, 0),
    ],
)
def test_attention_of_each_kind_by_hand(kind, seen, pairs, scored):
    sizes = {"head_dim": 8, "qk_nope_head_dim": 4, "qk_rope_head_dim": 2, "v_head_dim": 5, "num_attention_heads": 2}
    index = {
        "index_n_heads": 3,
        "index_head_dim": 7,
        "index_topk": 4,
        "sliding_window": 6,
        "csa_rate": 2,
        "hca_rate": 3,
    }
    config = dataclasses.replace(
        preset("v3"), layer_types=(kind,), num_hidden_layers=3, num_key_value_heads=1, o_groups=1, **sizes, **index
    )
    layers = 3 + 1  # one of them in the MTP module
    assert attention_a_token(config, seen) == layers * (2 * pairs + 3 * 7 * scored)
