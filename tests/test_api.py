"""The public API, on a model whose numbers Hugging Face computed too (tests/goldens/v3)."""

import dataclasses
import importlib
import shutil
import sys
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load_file

import deepseek_jax
from deepseek_jax import api, compiling, record
from deepseek_jax.config import Experiment, SupervisedExperiment
from deepseek_jax.convert import huggingface, orbax_directory
from deepseek_jax.convert.casting import cast
from deepseek_jax.data.tokenizer import Tokenizer, train_bpe
from deepseek_jax.errors import UserError
from deepseek_jax.models.decoder import initialise
from deepseek_jax.models.moe.experts import MOST_FOR_FEW
from deepseek_jax.train import loop
from deepseek_jax.train.checkpoints.restore import Trained
from deepseek_jax.train.setup import prepare
from deepseek_jax.train.state import make_state
from tests.paths import GOLDENS, ROOT
from tests.train import tiny

V3 = GOLDENS / "v3"
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(scope="module")
def model():
    return deepseek_jax.from_pretrained(V3)


@pytest.fixture(scope="module")
def expected():
    return dict(np.load(V3 / "expected.npz"))


def test_importing_the_package_does_not_import_jax(run_python):
    """Nor does training import what only draws pictures or a few runs need: it would start half a second later."""
    code = "import sys, deepseek_jax as d; assert 'jax' not in sys.modules; d.generate; assert 'jax' in sys.modules"
    code += "; import deepseek_jax.train.loop; assert not {'matplotlib', 'scipy'} & set(sys.modules)"
    result = run_python("-c", code)
    assert result.returncode == 0, result.stderr


def test_the_harness_says_what_to_install(monkeypatch):
    for name in ("lm_eval", "lm_eval.api.model"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "deepseek_jax.harness", raising=False)
    with pytest.raises(UserError, match="pip install 'lm_eval>=0.4.13'"):
        importlib.import_module("deepseek_jax.harness")


def test_every_public_name_is_found_and_none_hides_a_subpackage():
    found = {name: getattr(deepseek_jax, name) for name in deepseek_jax.__all__}
    assert found["run_experiment"] is loop.run_experiment and found["Tokenizer"] is Tokenizer
    assert set(found) <= set(dir(deepseek_jax))
    assert not [name for name in found if (Path(deepseek_jax.__file__).parent / name).exists()]


def test_the_tokenizer_of_a_directory_is_read_at_its_first_use(tmp_path, model):
    assert model.tokenizer is None
    directory = shutil.copytree(V3, tmp_path / "model")
    (directory / "tokenizer.json").write_text("{}")
    damaged = deepseek_jax.from_pretrained(directory)
    with pytest.raises(UserError, match="is not a tokenizer.json"):
        damaged.tokenizer  # noqa: B018
    with pytest.raises(UserError, match="is not a tokenizer.json.*  Or give `eos`: a token, or None"):
        deepseek_jax.generate(damaged, [[1]])
    train_bpe(["in the beginning"] * 9, 262, directory / "tokenizer.json")
    larger = deepseek_jax.from_pretrained(directory)
    with pytest.raises(UserError, match="has 262 entries and the model 256"):
        larger.tokenizer  # noqa: B018


def test_text_goes_in_and_comes_out_of_a_runs_model(tmp_path):
    experiment = tiny.experiment(tmp_path, steps=6)
    loop.train(experiment, tmp_path / "run", Console(quiet=True), until=1)
    model, other = (deepseek_jax.from_pretrained(tmp_path / "run") for _ in range(2))
    assert model.tokenizer is model.tokenizer
    assert model.tokenizer.decode(model.tokenizer.encode("the print statement")) == "the print statement"
    assert jax.tree.structure(model) == jax.tree.structure(other)
    assert jax.device_put(model).tokenizer is model.tokenizer
    for _ in range(2):  # the second time in the place where it comes from
        deepseek_jax.save_pretrained(model, tmp_path / "copy")
        model = deepseek_jax.from_pretrained(tmp_path / "copy")
        assert model.tokenizer_file == other.tokenizer_file


def test_an_unknown_name_raises_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'generat'"):
        deepseek_jax.generat  # noqa: B018


def test_logits_and_mtp_logits_are_those_of_hugging_face(model, expected):
    scores = model(expected["input_ids"])
    assert scores.logits.dtype == np.float32
    np.testing.assert_allclose(scores.logits, expected["logits"], **CLOSE)
    (further,) = scores.mtp_logits
    np.testing.assert_allclose(further[:, :-1], expected["mtp_logits"], **CLOSE)


@pytest.mark.parametrize("left", [True, False])
def test_padding_on_either_side_changes_no_logits(model, expected, left):
    mask = expected["pad_mask"].astype(bool)
    tokens = expected["pad_ids"].copy()
    tokens[~mask] = 7  # what padding contains must not matter
    if not left:
        turn = [np.argsort(~row, kind="stable") for row in mask]
        tokens, turned = (np.stack([row[order] for row, order in zip(rows, turn)]) for rows in (tokens, mask))
        np.testing.assert_allclose(model(tokens, turned).logits[turned], expected["pad_logits"][mask], **CLOSE)
        return
    np.testing.assert_allclose(model(tokens, mask).logits[mask], expected["pad_logits"][mask], **CLOSE)


def test_generate_takes_lists_and_arrays(model, expected):
    prompts = expected["input_ids"][:, : int(expected["gen_prompt_len"])]
    tokens = deepseek_jax.generate(model, prompts)
    assert tokens.dtype == np.int32 and tokens.shape == (len(prompts), 16)
    np.testing.assert_array_equal(tokens, expected["gen_tokens"])
    np.testing.assert_array_equal(deepseek_jax.generate(model, prompts.tolist(), max_new_tokens=16), tokens)


def test_token_ids_of_any_integer_type_give_the_same_logits(model, expected):
    given, length = expected["input_ids"], int(expected["gen_prompt_len"])
    logits = model(given).logits
    for same in (given.astype(np.int64), given.astype(np.uint16), given.tolist(), jax.numpy.asarray(given)):
        np.testing.assert_array_equal(model(same, np.ones(given.shape, bool)).logits, logits)
    prompts = [given[0, :length].astype(np.int64), given[1, :length].tolist()]
    np.testing.assert_array_equal(deepseek_jax.generate(model, prompts), expected["gen_tokens"])


def test_a_model_is_hashable_and_equals_only_itself(model):
    assert {model: "found"}[model] == "found"
    assert model != dataclasses.replace(model)


def test_a_model_passes_through_jax_as_any_pytree(model, expected):
    """Structure, config and tokenizer are static; models of one structure are one type of tree."""
    again = deepseek_jax.from_pretrained(V3)
    assert jax.tree.structure(again) == jax.tree.structure(model)
    doubled = jax.tree.map(jnp.add, model, again)
    np.testing.assert_array_equal(doubled.params["embedding"], 2 * model.params["embedding"])
    assert doubled.config is model.config and doubled.special_tokens == model.special_tokens
    placed = jax.device_put(model, jax.devices()[0])
    np.testing.assert_array_equal(placed(expected["input_ids"]).logits, model(expected["input_ids"]).logits)


def test_a_call_may_be_traced_with_the_model_and_its_input_as_arguments(model, expected):
    ids, mask = jnp.asarray(expected["pad_ids"]), jnp.asarray(expected["pad_mask"])
    plain = model(ids, mask)
    traced = jax.jit(lambda model, *rows: model(*rows))(model, ids, mask)
    jax.tree.map(lambda ours, theirs: np.testing.assert_allclose(ours, theirs, **CLOSE), traced, plain)
    states = jax.jit(lambda model, ids: deepseek_jax.trace(model, ids).feed_forward)(model, ids)
    np.testing.assert_allclose(states[1], deepseek_jax.trace(model, ids).feed_forward[1], **CLOSE)


def test_gradients_by_a_model_are_those_of_loss_and_grads(model, expected):
    ids = jnp.asarray(expected["input_ids"])

    def loss(model):
        likelihood = jnp.take_along_axis(jax.nn.log_softmax(model(ids).logits[:, :-1]), ids[:, 1:, None], axis=-1)
        return -likelihood.mean()

    value, grads = jax.jit(jax.value_and_grad(loss))(model)
    assert isinstance(grads, api.Model)
    expected_value, by_name = deepseek_jax.loss_and_grads(model, ids)
    assert float(value) == pytest.approx(expected_value, rel=1e-5)
    np.testing.assert_allclose(grads.params["embedding"], by_name["model.embed_tokens.weight"], **CLOSE)


def test_generate_of_one_token_and_of_none(model, expected):
    prompts = expected["input_ids"][:, : int(expected["gen_prompt_len"])]
    np.testing.assert_array_equal(deepseek_jax.generate(model, prompts, 1), expected["gen_tokens"][:, :1])
    assert deepseek_jax.generate(model, prompts, 0).shape == (len(prompts), 0)


def test_a_sequence_may_be_a_single_token(model, expected):
    scores = model(expected["input_ids"][:, :1])
    np.testing.assert_allclose(scores.logits, expected["logits"][:, :1], **CLOSE)
    assert scores.mtp_logits[0].shape == scores.logits.shape


def test_mtp_modules_may_look_past_the_end_of_a_short_sequence(model):
    """With one token the second MTP module has no token to look at; its logits are then meaningless but present."""
    config = dataclasses.replace(model.config, num_nextn_predict_layers=2)
    deeper = api.Model(config, *initialise(config, jax.random.key(0)))
    assert [logits.shape for logits in deeper([[1]]).mtp_logits] == [(1, 1, config.vocab_size)] * 2


@pytest.mark.parametrize("dtype, precision", [("float32", "highest"), ("bfloat16", None)])
def test_float32_is_not_rounded_on_any_device(model, expected, monkeypatch, dtype, precision):
    """GPUs and TPUs round the factors of float32 products unless told otherwise, so the precision must be set."""
    seen = []
    monkeypatch.setattr(api, "_scores", lambda *_: seen.append(jax.config.jax_default_matmul_precision))
    deepseek_jax.from_pretrained(V3, dtype=dtype)(expected["input_ids"])
    assert seen == [precision or "default"]


def test_models_can_be_read_and_used_in_other_threads(expected):
    prompts = expected["input_ids"][:, : int(expected["gen_prompt_len"])]
    with ThreadPoolExecutor(1) as thread:
        model = thread.submit(deepseek_jax.from_pretrained, V3).result()
        tokens = thread.submit(deepseek_jax.generate, model, prompts).result()
    np.testing.assert_array_equal(tokens, expected["gen_tokens"])


def test_texts_end_at_the_eos_of_the_models_tokenizer_unless_told_otherwise(model, expected, monkeypatch):
    prompts, free = expected["input_ids"][:, : int(expected["gen_prompt_len"])], expected["gen_tokens"]
    tokenizer = types.SimpleNamespace(eos=int(free[0, 3]))
    monkeypatch.setattr(type(model), "tokenizer", tokenizer)
    ended = deepseek_jax.generate(model, prompts)
    np.testing.assert_array_equal(ended[0], [*free[0, :4], *[tokenizer.eos] * 12])
    np.testing.assert_array_equal(deepseek_jax.generate(model, prompts, eos=None), free)


def test_nothing_but_eos_follows_eos(model, expected):
    prompts = expected["input_ids"][:, : int(expected["gen_prompt_len"])]
    eos = int(expected["gen_tokens"][0, 3])
    tokens = deepseek_jax.generate(model, prompts, eos=eos)
    np.testing.assert_array_equal(tokens[0], [*expected["gen_tokens"][0, :4], *[eos] * 12])


def test_how_many_drafts_were_accepted_is_logged(model, expected, caplog):
    caplog.set_level("INFO", "deepseek_jax")
    prompts = expected["input_ids"][:, : int(expected["gen_prompt_len"])]
    deepseek_jax.generate(model, prompts, 4, speculative=True)
    assert [found for found in caplog.messages if "drafts accepted" in found and found.startswith("speculation: ")]


def test_texts_longer_than_max_position_embeddings_are_warned_of(model, caplog):
    deepseek_jax.generate(model, [[1, 2]], max_new_tokens=254)
    assert not caplog.records
    deepseek_jax.generate(model, [[1, 2, 3], [1]], max_new_tokens=254)
    (record,) = caplog.records
    assert record.getMessage().startswith("1 of 2 texts have up to 257 tokens, and the model was made for 256 (max_")


def test_a_saved_model_is_read_back_identically(model, tmp_path):
    deepseek_jax.save_pretrained(model, tmp_path)
    again = deepseek_jax.from_pretrained(tmp_path)
    assert again.config == model.config
    assert again.special_tokens == {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params)


def test_a_model_is_not_saved_over_a_run(model, tmp_path):
    record.claim(tmp_path, Experiment())
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(UserError, match="is a run directory, whose config.json would be lost"):
        deepseek_jax.save_pretrained(model, tmp_path)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("config.json", before)]


def test_v4_is_saved_under_either_set_of_names(tmp_path):
    official = V3.parent / "v4/official"
    deepseek_jax.save_pretrained(deepseek_jax.from_pretrained(official), tmp_path, spelling="deepseek")
    written, original = (load_file(directory / "model.safetensors") for directory in (tmp_path, official))
    assert written.keys() == original.keys()
    for name in original:
        assert written[name].tobytes() == original[name].tobytes(), name


def test_bfloat16_is_read_and_written_as_such(model, tmp_path):
    rough = deepseek_jax.from_pretrained(V3, dtype="bfloat16")
    deepseek_jax.save_pretrained(rough, tmp_path)
    again = deepseek_jax.from_pretrained(tmp_path, dtype="bfloat16")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(again.params)} == {"bfloat16"}
    jax.tree.map(np.testing.assert_array_equal, again.params, rough.params)


@pytest.mark.parametrize("stored, dtype", [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_an_orbax_checkpoint_is_read_in_either_dtype(tmp_path, stored, dtype):
    """The arrays that V4 ships in float32 stay float32."""
    official = V3.parent / "v4/official"
    config = huggingface.read_config(official)
    orbax_directory.save(tmp_path, config, *huggingface.load(official, config), dtype=stored)
    found = deepseek_jax.from_pretrained(tmp_path, dtype)
    expected = deepseek_jax.from_pretrained(official, "bfloat16")
    assert found.config == expected.config

    def types(model):
        return jax.tree.map(lambda leaf: leaf.dtype, (model.params, model.buffers))

    assert types(found) == types(deepseek_jax.from_pretrained(official, dtype))

    def same(one, other):
        return np.testing.assert_array_equal(*(np.asarray(x, np.float32) for x in (one, other)))

    jax.tree.map(same, (found.params, found.buffers), (expected.params, expected.buffers))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.dtype("bfloat16"), np.dtype(jnp.bfloat16)])
def test_a_dtype_may_be_given_as_a_jax_or_numpy_dtype(dtype):
    embedding = deepseek_jax.from_pretrained(V3, dtype=dtype).params["embedding"]
    expected = deepseek_jax.from_pretrained(V3, dtype="bfloat16").params["embedding"]
    assert embedding.dtype == jnp.bfloat16 and (embedding == expected).all()


def test_bfloat16_logits_are_close_to_float32(model, expected):
    rough = deepseek_jax.from_pretrained(V3, dtype="bfloat16")
    logits = rough(expected["input_ids"]).logits
    assert logits.dtype == np.float32
    assert 0 < np.abs(logits - expected["logits"]).mean() < 0.05 * np.abs(expected["logits"]).mean()


def test_float16_has_losses_and_gradients_for_many_rows():
    """Over 128 expert assignments take another path, for which megablox, which refuses float16, must not be traced."""
    golden = V3.parent / "moe"
    expected = np.load(golden / "expected.npz")
    model = deepseek_jax.from_pretrained(golden, dtype="float16")
    assert expected["input_ids"].size * model.config.num_experts_per_tok > MOST_FOR_FEW
    loss, grads = deepseek_jax.loss_and_grads(model, expected["input_ids"])
    assert abs(loss - expected["loss"]) < 1e-3 * expected["loss"]
    found = grads["model.embed_tokens.weight"].astype(np.float32)
    error = np.abs(found - expected["grad__model.embed_tokens.weight"]).mean()
    assert error < 0.05 * np.abs(expected["grad__model.embed_tokens.weight"]).mean()


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda model: model([1, 2, 3]), "shape"),
        (lambda model: model([[1, 2], [3]]), "input_ids has rows of different lengths"),
        (lambda model: model([[1, 256]]), "token 256"),
        (lambda model: model([[1, 2**32]]), "token 4294967296"),
        (lambda model: model([[0.5, 1.0]]), "of type float64"),
        (lambda model: model([[1, 2]], [[1, 2]]), "other numbers than 1"),
        (lambda model: model([[1, 2]], [[1]]), "attention_mask"),
        (lambda model: model([[1, 2], [3, 4]], [[1, 1], [1]]), "attention_mask has rows of different lengths"),
        (lambda model: deepseek_jax.generate(model, [[1], [-1]]), "token -1"),
        (lambda model: deepseek_jax.generate(model, []), "the list of prompts is empty"),
        (lambda model: deepseek_jax.generate(model, [], 0), "the list of prompts is empty"),
        (lambda model: deepseek_jax.generate(model, None), "prompts is None; give a list of token numbers"),
        (lambda model: deepseek_jax.generate(model, [[1], []]), "a prompt is empty"),
        (lambda model: deepseek_jax.generate(model, [[]], 0), "a prompt is empty"),
        (lambda model: deepseek_jax.generate(model, [1, 2]), "a list of token numbers for each prompt"),
        (lambda model: deepseek_jax.generate(model, [[1.5]]), "a prompt is of type float64"),
        (lambda model: deepseek_jax.generate(model, [[1]], -1), "max_new_tokens is -1"),
        (lambda model: deepseek_jax.generate(model, [[1]], 2**31 - 1), "must lie between 0 and 1000000000"),
        (lambda model: deepseek_jax.generate(model, [[1]], 4.5), "max_new_tokens is 4.5; give one whole number"),
        (lambda model: deepseek_jax.generate(model, [[1]], eos=[1, 2]), "eos is .1, 2.; give one whole number"),
        (lambda model: deepseek_jax.generate(model, [[1]], eos=256), "eos is 256; it must lie between 0 and 255"),
        (lambda model: deepseek_jax.generate(model, [[1]], seed=2**70), "seed is"),
        (lambda model: deepseek_jax.generate(model, [[1]], temperature=float("nan")), "temperature is nan"),
        (lambda model: deepseek_jax.generate(model, [[1]], temperature=np.ones(2)), r"temperature is array\("),
        (lambda model: jax.jit(lambda x: model([[x, 1]]).logits)(1), "input_ids is traced by a jax transform or holds"),
        (lambda model: jax.jit(lambda ids: deepseek_jax.loss_and_grads(model, ids))(jnp.eye(2)), "input_ids is traced"),
        (lambda model: jax.jit(lambda ids: model(ids).logits)(jnp.eye(2)), "input_ids is of type float32"),
        (lambda model: jax.jit(lambda ids: model(ids).logits)(jnp.arange(2)), "input_ids has shape"),
        (lambda model: jax.jit(lambda ids: deepseek_jax.generate(model, ids))(jnp.eye(2)), "a prompt is traced"),
        (lambda model: model([[1, 2, 3]], [[1, 0, 1]]), "padding between tokens"),
        (lambda model: deepseek_jax.save_pretrained(model, "out", spelling="torch"), "spelling is 'torch'"),
        (lambda model: deepseek_jax.save_pretrained(model, __file__), "test_api.py is a file"),
        (lambda model: deepseek_jax.loss_and_grads(model, [[1], [2]]), "at least two"),
        (lambda model: deepseek_jax.from_config(model.config, seed=-1), "seed is -1"),
        (lambda model: deepseek_jax.from_config(model.config, dtype="int8"), "dtype is 'int8'"),
        (lambda model: deepseek_jax.from_pretrained(V3, dtype="int8"), "dtype"),
        (
            lambda model: deepseek_jax.from_pretrained(V3, dtype=jnp.int8),
            "dtype is .*int8.*; choose one of float32",
        ),
        (lambda model: deepseek_jax.from_pretrained(V3, dtype=None), "dtype is None; choose one of float32"),
        (lambda model: deepseek_jax.from_pretrained(V3, dtype="bf16"), "dtype is 'bf16'; choose one of float32"),
        (lambda model: deepseek_jax.from_pretrained(V3, dtype=16), "dtype is 16; choose one of float32"),
    ],
)
def test_invalid_arguments_are_refused(model, call, message):
    with pytest.raises(UserError, match=message):
        call(model)


def test_from_config_gives_the_initial_model_of_a_training_run(tmp_path):
    experiment = tiny.experiment(tmp_path, tiny.MOE)
    experiment = dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, seed=3))
    setup = prepare(experiment, Console(quiet=True))
    begun = make_state(setup.program, setup.optimizer, setup.abstract)
    made = deepseek_jax.from_config(tiny.MOE, seed=3)
    for ours, theirs in ((made.params, begun["params"]), (made.buffers, begun["buffers"])):
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert not (made.params["embedding"] == deepseek_jax.from_config(tiny.MOE).params["embedding"]).all()


def test_from_config_takes_an_experiments_file_and_a_dtype(tmp_path):
    config = deepseek_jax.from_config(ROOT / "configs/v3_tiny.py", dtype="bfloat16")
    assert config.config.n_routed_experts == 16 and config.params["head"].dtype == jnp.bfloat16
    assert config.buffers["layers"]["1-3"]["feed_forward"]["router"]["bias"].dtype == jnp.float32
    deepseek_jax.save_pretrained(config, tmp_path)
    again = deepseek_jax.from_pretrained(tmp_path, dtype="bfloat16")
    jax.tree.map(np.testing.assert_array_equal, again.params, config.params)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_new_model_in_16_bits_is_the_float32_one_cast(dtype):
    whole, made = (deepseek_jax.from_config(tiny.MOE, seed=3, dtype=each) for each in ("float32", dtype))
    expected = cast(tiny.MOE, whole.params, dtype)

    def same(*each):
        return np.testing.assert_array_equal(*map(np.asarray, each), strict=True)

    jax.tree.map(same, made.params, expected)


def test_a_new_model_whose_numbers_overflow_its_dtype_is_refused():
    wide = dataclasses.replace(tiny.MOE, initializer_range=1e5)
    with pytest.raises(UserError, match="holds numbers beyond 65,504, the largest of float16"):
        deepseek_jax.from_config(wide, dtype="float16")


def test_arrays_of_a_new_model_are_drawn_one_at_a_time():
    """Drawing all of them at once and casting afterwards took 4.8 times the memory of a bfloat16 model."""
    config = dataclasses.replace(tiny.MOE, hidden_size=128, moe_intermediate_size=256, n_routed_experts=16)
    key, drawn = jax.random.key(0), api._drawn.__wrapped__
    largest = max(4 * leaf.size for leaf in jax.tree.leaves(api.from_config(config).params))
    lowered = jax.jit(drawn, static_argnums=(0, 1)).lower(config, "bfloat16", key)
    assert lowered.compile(compiling.LEAST_MEMORY).memory_analysis().temp_size_in_bytes < 4.5 * largest
    assert lowered.compile().memory_analysis().temp_size_in_bytes > 5 * largest, "then LEAST_MEMORY is not needed"


@pytest.mark.parametrize(
    "file, message", [("none.py", "no config file none.py"), ("hybrid_mnist.py", "hybrid network")]
)
def test_from_config_refuses_missing_files_and_hybrid_networks(file, message):
    with pytest.raises(UserError, match=message):
        deepseek_jax.from_config(ROOT / "configs" / file if file.startswith("hybrid") else file)


def test_reading_a_run_whose_numbers_overflow_the_dtype_is_refused(tmp_path, monkeypatch):
    """As for a released checkpoint: it used to be read, with infinity for the number."""
    experiment = tiny.experiment(tmp_path, tiny.MOE)
    record.claim(tmp_path, experiment)
    _, params, buffers = initialise(experiment.model, jax.random.key(0))
    params |= {"head": params["head"].at[0, 0].set(1e6)}
    trained = Trained(tmp_path, experiment, 0, experiment.model, params, buffers)
    monkeypatch.setattr("deepseek_jax.train.checkpoints.any_checkpoint.restore_model", lambda *_: trained)
    assert deepseek_jax.from_pretrained(tmp_path, "bfloat16").params["head"].dtype == jnp.bfloat16
    with pytest.raises(UserError, match="^head holds numbers beyond 65,504, the largest of float16"):
        deepseek_jax.from_pretrained(tmp_path, "float16")


def test_from_pretrained_refuses_a_run_without_a_checkpoint(tmp_path):
    record.claim(tmp_path, tiny.experiment(tmp_path))
    with pytest.raises(UserError, match="has no checkpoint yet; train it first.$"):
        deepseek_jax.from_pretrained(tmp_path)


def test_from_pretrained_refuses_a_run_of_a_hybrid_network(tmp_path):
    record.claim(tmp_path, SupervisedExperiment())
    with pytest.raises(UserError, match="has a hybrid network; from_pretrained reads language models"):
        deepseek_jax.from_pretrained(tmp_path)
