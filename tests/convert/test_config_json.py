"""config.json of every generation: both spellings, the round trip, and refusals of files that cannot be read."""

import dataclasses
import json

import pytest

from deepseek_jax.convert import config_json, generations
from deepseek_jax.errors import UserError
from deepseek_jax.models.config import ModelConfig, RopeScaling
from tests.paths import GOLDENS

BEFORE_V4 = ("v2", "v2_lite", "v2_plain", "v3", "v3_plain", "v32")
V4 = ("v4", "v4_r128")

# The released 7B base model and the 16B mixture, without keys that do not affect the computation.
LLAMA_7B = {
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "num_attention_heads": 32,
    "num_hidden_layers": 30,
    "num_key_value_heads": 32,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "vocab_size": 102400,
}
MOE_16B = LLAMA_7B | {
    "model_type": "deepseek",
    "hidden_size": 2048,
    "intermediate_size": 10944,
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 16,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 1408,
    "moe_layer_freq": 1,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "norm_topk_prob": False,
    "num_experts_per_tok": 6,
    "scoring_func": "softmax",
}

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}


def values(name: str) -> dict:
    return json.loads((GOLDENS / name).read_text())


@pytest.mark.parametrize("name", BEFORE_V4 + V4)
def test_both_spellings_give_one_config(name):
    other = "official/config.json" if name in V4 else "config_hub_style.json"
    assert config_json.from_json(values(f"{name}/config.json")) == config_json.from_json(values(f"{name}/{other}"))


@pytest.mark.parametrize("spelling", ["huggingface", "deepseek"])
@pytest.mark.parametrize("name", BEFORE_V4 + V4)
def test_config_survives_the_round_trip(name, spelling):
    original = values(f"{name}/config.json")
    config = config_json.from_json(original)
    written = json.loads(json.dumps(config_json.to_json(config, spelling)))
    assert written["model_type"] == original["model_type"]
    assert ("compress_ratios" in written) == (name in V4 and spelling == "deepseek")
    assert config_json.from_json(written) == config


def test_configs_of_the_first_models_are_read():
    """DeepSeek-LLM has Llama's blocks; DeepSeekMoE adds experts chosen greedily by softmax."""
    config = config_json.from_json(LLAMA_7B)
    assert set(config.attention_kinds) == {"gqa"} and set(config.feed_forward_kinds) == {"dense"}
    assert (config.head_dim, config.rope_interleave) == (128, False)
    mixture = config_json.from_json(MOE_16B)
    assert mixture.feed_forward_kinds == ("dense",) + ("moe",) * 27
    assert (mixture.scoring_func, mixture.topk_method, mixture.n_group) == ("softmax", "greedy", 1)
    for each in (config, mixture):
        assert config_json.from_json(config_json.to_json(each)) == each


def test_the_layer_kinds_of_v4_are_read():
    config = config_json.from_json(values("v4/official/config.json"))
    assert config.attention_kinds == ("window", "hca", "csa", "csa", "hca", "window", "window")
    assert config.feed_forward_kinds == ("hash_moe",) * 3 + ("moe",) * 4
    assert (config.csa_rate, config.hca_rate) == (4, 16)


def test_a_mixture_of_generations_is_written_field_by_field():
    config = dataclasses.replace(config_json.from_json(values("v3/config.json")), hc_mult=2)
    written = json.loads(json.dumps(config_json.to_json(config)))
    assert written["model_type"] == "deepseek_jax"
    assert config_json.from_json(written) == config


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("v4", {"swiglu_limit": 0.0}),  # transformers would clamp to 0
        ("v4", {"hc_mult": 0}),
        ("v4", {"n_shared_experts": 2}),
        ("moe", {"num_experts_per_tok": 1, "norm_topk_prob": True}),  # DeepSeek's code leaves a single score as it is
    ],
)
def test_models_that_other_programs_would_compute_differently_are_written_field_by_field(name, change):
    config = dataclasses.replace(config_json.from_json(values(f"{name}/config.json")), **change)
    assert config_json.to_json(config)["model_type"] == "deepseek_jax"


def test_a_custom_field_is_written_and_read_back(monkeypatch):
    """No generation has such a field, so where it is not at its default the model_type is ours."""
    fields = [("embedding_scale", float, dataclasses.field(default=1.0))]
    own = dataclasses.make_dataclass("Own", fields, bases=(ModelConfig,), frozen=True)
    for module in (config_json, generations):
        monkeypatch.setattr(module, "ModelConfig", own)
    off = config_json.from_json(values("v3/config.json"))
    assert config_json.to_json(off)["model_type"] == "deepseek_v3"
    on = dataclasses.replace(off, embedding_scale=3.0)
    assert config_json.from_json(json.loads(json.dumps(config_json.to_json(on)))) == on


def test_a_section_that_is_null_is_refused_by_name():
    written = config_json.to_json(dataclasses.replace(config_json.from_json(values("v3/config.json")), hc_mult=2))
    with pytest.raises(UserError, match="config.json's rope_scaling is None; it must be an object"):
        config_json.from_json(written | {"rope_scaling": None})


def test_an_unknown_field_is_refused():
    written = config_json.to_json(dataclasses.replace(config_json.from_json(values("v3/config.json")), hc_mult=2))
    with pytest.raises(UserError, match="config.json has embedding_scale 3.0, which is not a field of ModelConfig"):
        config_json.from_json(written | {"embedding_scale": 3.0})
    assert config_json.from_json(written | {"torch_dtype": "bfloat16"}) == config_json.from_json(written)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("v4", {"hc_manifold": False}),
        ("v4", {"qk_rope_head_dim": 0}),
        ("v4", {"swiglu_limit": 0.0}),
        ("v2", {"topk_method": "round_robin"}),
        ("moe", {"masked_top_experts": 2}),
        ("moe", {"n_shared_experts": 0}),
        ("v3", {"rope_scaling": RopeScaling(factor=4.0, mscale=0.707, mscale_all_dim=0.0)}),
        ("v3", {"rope_scaling": RopeScaling(factor=4.0, mscale=0.0, mscale_all_dim=1.0)}),
    ],
)
def test_settings_that_no_release_has_survive_the_round_trip(name, change):
    config = dataclasses.replace(config_json.from_json(values(f"{name}/config.json")), **change)
    assert config_json.from_json(json.loads(json.dumps(config_json.to_json(config)))) == config


def test_compression_rates_that_deepseeks_spelling_cannot_express_are_refused():
    config = dataclasses.replace(config_json.from_json(values("v4/config.json")), csa_rate=8)
    with pytest.raises(UserError, match="csa_rate 8"):
        config_json.to_json(config, "deepseek")
    assert config_json.from_json(config_json.to_json(config, "huggingface")) == config


def test_norm_topk_prob_of_v2_is_ignored():
    """As in Hugging Face: the golden v2_plain has norm_topk_prob true and does not normalise."""
    assert values("v2_plain/config.json")["norm_topk_prob"]
    assert not config_json.from_json(values("v2_plain/config.json")).norm_topk_prob


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "mistral"},
        {"scoring_func": "softmax"},
        {"moe_layer_freq": 2},
        {"quantization_config": {"quant_method": "fp8"}},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0}},
        {"rope_parameters": YARN | {"attention_factor": 1.0}},
        {"rope_parameters": YARN | {"mscale_all_dim": 1.0}},
    ],
)
def test_unsupported_computations_are_refused(change):
    with pytest.raises(UserError, match="config.json"):
        config_json.from_json(values("v3/config.json") | change)


@pytest.mark.parametrize(
    ("rope", "what"),
    [
        (YARN | {"attention_factor": 1.0}, "yarn with attention_factor"),
        (YARN | {"rope_type": "linear"}, "linear"),
        (YARN | {"type": "dynamic"}, "dynamic and yarn"),
    ],
)
def test_what_cannot_be_read_of_a_rope_is_named(rope, what):
    with pytest.raises(UserError, match=f"extends rotary embeddings by {what}; only yarn with"):
        config_json.from_json(values("v3/config.json") | {"rope_parameters": rope})


@pytest.mark.parametrize("name", ["v3", "v4", "v4/official"])
@pytest.mark.parametrize("key", ["num_hidden_layers", "num_nextn_predict_layers", "n_routed_experts"])
def test_absurdly_large_counts_are_refused(name, key):
    given = values(f"{name}/config.json") | {key: 10**12}
    with pytest.raises(UserError, match=f"config.json has {key} 1,000,000,000,000; it must be at most 100,000."):
        config_json.from_json(given)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"compress_ratios": [0, 16, 4, 4, 32, 0, 0]}, "16 and 32"),
        ({"norm_topk_prob": False}, "norm_topk_prob"),
        ({"rope_parameters": {"main": YARN, "compress": {}}}, "extends rotary embeddings of main"),
        ({"rope_parameters": {"main": {}, "compress": YARN | {"attention_factor": 1.5}}}, "attention_factor 1.5"),
    ],
)
def test_impossible_v4_configs_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        config_json.from_json(values("v4/official/config.json") | change)


def rotated(part: str, without: str = "", **change) -> dict:
    """The golden's rope_parameters, of which `part` (main or compress) is changed."""
    ropes = values("v4/config.json")["rope_parameters"]
    kept = {key: value for key, value in ropes[part].items() if key != without}
    return {"rope_parameters": ropes | {part: kept | change}}


KINDS = ["sliding_attention", "heavily_compressed_attention"]
RATES = {"compressed_sparse_attention": 4, "heavily_compressed_attention": 32}


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("v4", {"swiglu_limit": 0.0}, "swiglu_limit 0, to which transformers would clamp all"),
        ("v4", {"partial_rotary_factor": 0.25}, "qk_rope_head_dim 8, but partial_rotary_factor 0.25 of head_dim 16"),
        ("v4/official", {"partial_rotary_factor": 0.25}, "qk_rope_head_dim 8, but partial_rotary_factor 0.25"),
        ("v4", rotated("main", partial_rotary_factor=1.0), "in main partial_rotary_factor 1.0 of head_dim 16 is 16"),
        ("v4", rotated("compress", partial_rotary_factor=0.25), "in compress partial_rotary_factor 0.25"),
        ("v4", rotated("main", partial_rotary_factor="half"), "partial_rotary_factor of main is 'half'"),
        (
            "v4",
            rotated("main", without="partial_rotary_factor") | {"partial_rotary_factor": None},
            "in main partial_rotary_factor 1.0 of head_dim 16 is 16",
        ),
        ("v4", rotated("compress", without="rope_theta"), "no rope_theta in compress"),
        ("v4", rotated("compress", without="attention_factor"), "compress without attention_factor; give 1.0"),
        ("v4", {"rope_parameters": YARN | {"rope_theta": 77.0}}, "rope_theta 10000.0 and 77.0"),
        ("v4", {"compress_rate_hca": 32}, "compress_rate_hca 32; give it in compress_rates instead"),
        ("v4/official", {"compress_rate_csa": 8}, "compress_rate_csa 8"),
        ("v4/official", {"layer_types": KINDS * 3}, "compress_ratios and layer_types that say different things"),
        ("v4/official", {"compress_rates": RATES}, "compress_ratios and compress_rates that say different things"),
        ("v4", {"layer_types": KINDS}, "layer_types of 2 layers; num_hidden_layers says otherwise"),
        ("v4/official", {"compress_ratios": [0, 16, 4]}, "compress_ratios of 3 layers"),
        ("v3", {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        ("v3", {"original_max_position_embeddings": 32}, "original_max_position_embeddings 32 and 64"),
        ("v3", {"is_causal": False}, "is_causal False"),
        ("v3", {"num_local_experts": 8}, "n_routed_experts 12 and num_local_experts 8"),
        ("v32", {"num_experts": 8}, "n_routed_experts 12 and num_experts 8"),
        ("v3", {"num_mtp_layers": 2}, "num_nextn_predict_layers 1 and num_mtp_layers 2"),
        ("v4", {"intermediate_size": 24}, "moe_intermediate_size 20 and intermediate_size 24"),
        ("v3", {"mlp_layer_types": ["sparse", "dense", "sparse"]}, "not first_k_dense_replace 1, the key that"),
        ("v3", {"per_layer_config": {"1": {"rms_norm_eps": 0.1}}}, "per_layer_config"),
    ],
)
def test_files_of_which_transformers_computes_another_model_are_refused(name, change, message):
    """Each key was ignored, or read by its name alone, while transformers follows it or what it leaves out."""
    with pytest.raises(UserError, match=message):
        config_json.from_json(values(f"{name}/config.json") | change)


@pytest.mark.parametrize(
    ("name", "other", "key"),
    [
        ("v3", "num_local_experts", "n_routed_experts"),
        ("v3", "num_mtp_layers", "num_nextn_predict_layers"),
        ("v4", "intermediate_size", "moe_intermediate_size"),
    ],
)
def test_other_names_of_transformers_are_read(name, other, key):
    given = values(f"{name}/config.json")
    renamed = given | {other: given[key]}
    del renamed[key]
    assert config_json.from_json(renamed) == config_json.from_json(given | {other: given[key]})
    assert config_json.from_json(renamed) == config_json.from_json(given)


def test_a_list_of_feed_forwards_that_says_the_same_is_read():
    """transformers writes it for V3.2 and V4 alone."""
    given = values("v3/config.json")
    listed = given | {"mlp_layer_types": ["dense", "sparse", "sparse"]}
    assert config_json.from_json(listed) == config_json.from_json(given)


@pytest.mark.parametrize(
    ("name", "key", "kind"),
    [
        ("v2/config_hub_style.json", "first_k_dense_replace", "dense"),
        ("v3/config.json", "first_k_dense_replace", "dense"),
        ("v32/config_hub_style.json", "first_k_dense_replace", "dense"),
        ("v4/official/config.json", "num_hash_layers", "hash_moe"),
    ],
)
def test_leading_layers_beyond_the_depth_are_all_layers(name, key, kind):
    """As in transformers and in DeepSeek's code, which compare each layer's index with that number."""
    given = values(name)
    depth = given["num_hidden_layers"]
    config = config_json.from_json(given | {key: depth + 1})
    assert config == config_json.from_json(given | {key: depth})
    assert config.feed_forward_kinds[:depth] == (kind,) * depth


def test_keys_of_v4_that_say_the_same_twice_are_read():
    original, both = values("v4/config.json"), values("v4/official/config.json")
    both |= {key: original[key] for key in ("layer_types", "compress_rates", "partial_rotary_factor")}
    both |= {"compress_rate_csa": 4, "compress_rate_hca": 16}
    assert config_json.from_json(both) == config_json.from_json(original)


def test_the_base_of_main_is_rope_theta_where_it_has_none_itself():
    """As in transformers."""
    given = values("v4/config.json") | rotated("main", without="rope_theta") | {"rope_theta": 77.0}
    assert config_json.from_json(given).rope_theta == 77.0


def test_compress_ratios_may_go_on_to_mtp_modules_that_are_left_out():
    given = values("v4/official/config.json")
    assert len(given["compress_ratios"]) > given["num_hidden_layers"]
    config = config_json.from_json(given | {"num_nextn_predict_layers": 0})
    assert config == config_json.from_json(given).without_mtp()


@pytest.mark.parametrize(("head_dim", "width"), [(88, 30), (104, 60), (184, 26), (512, 64)])
def test_transformers_gets_back_the_rotated_dims_of_v4(head_dim, width):
    """It cuts off head_dim * partial_rotary_factor, and 88 * (30 / 88) is 29.999..."""
    sizes = {"head_dim": head_dim, "qk_rope_head_dim": width, "index_head_dim": 64}
    config = dataclasses.replace(config_json.from_json(values("v4/config.json")), **sizes)
    written = config_json.to_json(config)
    for each in (written, *written["rope_parameters"].values()):
        assert int(head_dim * each["partial_rotary_factor"]) == width
    assert config_json.from_json(written) == config


@pytest.mark.parametrize(
    "name, missing",
    [
        ("v2/config.json", "topk_method"),
        ("v3/config.json", "hidden_size"),
        ("v3/config.json", "n_group"),
        ("v4/config.json", "hc_mult"),
        ("v4/config.json", "layer_types"),
        ("v4/official/config.json", "num_hidden_layers"),
        ("v4/official/config.json", "qk_rope_head_dim"),
    ],
)
def test_a_missing_key_is_named(name, missing):
    rest = values(name)
    del rest[missing]
    with pytest.raises(UserError, match=f"has no.* {missing}"):
        config_json.from_json(rest)


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("v3", {"hidden_size": "64"}, "config.json's hidden_size is '64'; it must be a whole number"),
        ("v3", {"num_attention_heads": 4.0}, "num_attention_heads is 4.0; it must be a whole number"),
        ("v3", {"tie_word_embeddings": 0}, "tie_word_embeddings is 0; it must be true or false"),
        ("v3", {"rope_parameters": YARN | {"factor": "4"}}, "rope_scaling.factor is '4'"),
        ("v3", {"rope_parameters": "yarn"}, "rope_parameters is 'yarn'; it must be an object"),
        ("v32", {"mlp_layer_types": ["dense"]}, "mlp_layer_types of 1 layers"),
        ("v3", {"rope_parameters": {"rope_type": ["yarn"], "factor": 4.0}}, r"extends rotary embeddings by \['yarn'\]"),
        ("v3", {"mlp_layer_types": 3}, "mlp_layer_types is 3; it must be a list"),
        ("v4", {"layer_types": [["sliding_attention"]]}, r"layer_types is \['sliding_attention'\]; it must be text"),
        ("v4", {"compress_rates": 4}, "compress_rates is 4; it must be an object"),
        ("v4", {"num_hidden_layers": "6"}, "num_hidden_layers is '6'; it must be a whole number"),
        ("v4", {"rope_parameters": {"compress": {}}}, "an object for main and one for compress"),
        ("v4/official", {"compress_ratios": None}, "has no compress_ratios"),
        ("v4/official", {"compress_ratios": ["a", 128, 4]}, "compress_ratios is 'a'; it must be a whole number"),
        ("v4/official", {"num_hidden_layers": 6.0}, "num_hidden_layers is 6.0; it must be a whole number"),
        ("v4", {"layer_types": [1, "a"]}, "layer_types is 1; it must be text"),
        ("v4", {"layer_types": None}, "has no compress_ratios and no layer_types"),
        ("v3", {"rope_scaling": [1]}, r"rope_scaling is \[1\]; it must be an object"),
        ("v4/official", {"compress_ratios": 4}, "compress_ratios is 4; it must be a list"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_by_name(name, change, message):
    with pytest.raises(UserError, match=message):
        config_json.from_json(values(f"{name}/config.json") | change)


@pytest.mark.parametrize("missing", ["factor", "original_max_position_embeddings"])
def test_yarn_without_a_number_is_refused(missing):
    """Defaults differ: for a missing original length transformers takes max_position_embeddings, DeepSeek 4,096."""
    rope = {key: value for key, value in YARN.items() if key != missing}
    with pytest.raises(UserError, match=f"yarn without {missing}; give it"):
        config_json.from_json(values("v3/config.json") | {"rope_parameters": rope})


def test_a_rope_factor_without_rope_type_is_refused():
    """transformers ignores the factor with a warning; ignoring it silently would compute another model."""
    with pytest.raises(UserError, match="extends rotary embeddings by 4.0, but has no rope_type"):
        config_json.from_json(values("v3/config.json") | {"rope_parameters": {"factor": 4.0}})


def test_contradicting_rope_parameters_and_rope_scaling_are_refused():
    """transformers would follow rope_scaling, which is added to extend a context; this package rope_parameters."""
    plain = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
    extended = values("v3/config.json") | {"rope_scaling": YARN}
    with pytest.raises(UserError, match="rope_parameters and rope_scaling that say different things; leave one"):
        config_json.from_json(extended | plain)
    same = config_json.from_json(extended | {"rope_parameters": YARN | {"rope_theta": 10000.0}})
    assert same.rope_scaling.factor == 4.0


def test_a_null_rope_interleave_is_refused():
    """transformers takes null for false, but a missing value for true."""
    with pytest.raises(UserError, match="rope_interleave null"):
        config_json.from_json(values("v3/config.json") | {"rope_interleave": None})


def test_the_score_of_a_single_expert_is_not_normalised_in_deepseek_moe():
    """As in DeepSeek's code: normalised, every score would be 1."""
    assert config_json.from_json(MOE_16B | {"norm_topk_prob": True}).norm_topk_prob
    one = config_json.from_json(MOE_16B | {"norm_topk_prob": True, "num_experts_per_tok": 1})
    assert not one.norm_topk_prob
    assert config_json.to_json(one)["model_type"] == "deepseek"


def test_a_null_size_counts_as_missing():
    with pytest.raises(UserError, match="has no hidden_size"):
        config_json.from_json(values("v3/config.json") | {"hidden_size": None})


def test_yarn_without_mscales_scales_only_the_rotated_dimensions():
    """As in Hugging Face: mscale defaults to 1 and the softmax scale is unchanged.  The goldens have both given."""
    scaling = config_json.from_json(values("v3/config.json") | {"rope_parameters": YARN}).rope_scaling
    assert scaling == RopeScaling(factor=4.0, original_max_position_embeddings=64, mscale=1.0, mscale_all_dim=0.0)
    assert scaling.magnitude(scaling.mscale_all_dim) == 1.0
    for same in ({"mscale": 1.0}, {"mscale": None}, {"mscale": 1.0, "mscale_all_dim": 0.0}):
        given = values("v3/config.json") | {"rope_parameters": YARN | same}
        assert config_json.from_json(given).rope_scaling == scaling


@pytest.mark.parametrize("others", [{}, {"mscale_all_dim": 0}, {"mscale_all_dim": None}])
def test_an_mscale_alone_is_refused(others):
    """transformers ignores it; DeepSeek's code (modeling_deepseek.py of the releases) scales the rotations by it."""
    given = values("v3/config.json") | {"rope_parameters": YARN | {"mscale": 0.7} | others}
    with pytest.raises(UserError, match="mscale 0.7 without mscale_all_dim, for which transformers takes 1.0"):
        config_json.from_json(given)


def test_an_mscale_of_v4_is_ignored():
    """As in transformers and DeepSeek's code: its rotations are never magnified."""
    given = values("v4/official/config.json")
    scaled = given | {"rope_scaling": given["rope_scaling"] | {"mscale": 0.7}}
    assert config_json.from_json(scaled).rope_scaling == config_json.from_json(given).rope_scaling


def test_weights_of_a_file_without_initializer_range_begin_as_in_hugging_face():
    given = {key: value for key, value in LLAMA_7B.items() if key != "initializer_range"}
    assert config_json.from_json(given).initializer_range == 0.02


def test_the_default_model_config_is_v3():
    assert config_json.to_json(ModelConfig())["model_type"] == "deepseek_v3"
