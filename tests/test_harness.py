"""lm-evaluation-harness scores models of this package, with the numbers of its own `hf` (tests/goldens/harness)."""

import json
import shutil

import jax
import numpy as np
import pytest
from rich.console import Console

from deepseek_jax import api
from deepseek_jax.data import chat as chats
from deepseek_jax.errors import UserError
from deepseek_jax.train import loop
from tests.paths import GOLDENS
from tests.train import tiny

lm_eval = pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from deepseek_jax.harness import HarnessModel  # noqa: E402

EXPECTED = json.loads((GOLDENS / "harness/expected.json").read_text())
TASKS = {
    "choice": "output_type: multiple_choice\ndoc_to_choice: ['the', 'of', 'and']\ndoc_to_target: '{{label}}'",
    "rolling": "output_type: loglikelihood_rolling\ndoc_to_target: '{{text}}'\nmetric_list: [{metric: bits_per_byte}]",
    "generation": "output_type: generate_until\ndoc_to_target: '{{text}}'\n"
    "generation_kwargs: {until: ['e'], max_gen_toks: 8}\nmetric_list: [{metric: exact_match}]",
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """The model of tests/goldens/v3 with a tokenizer."""
    path = shutil.copytree(GOLDENS / "v3", tmp_path_factory.mktemp("harness") / "v3")
    shutil.copy(GOLDENS / "harness/tokenizer.json", path)
    return path


@pytest.fixture(scope="module")
def model(directory):
    return HarnessModel(directory, batch_size=4)


def requests(*arguments) -> list[Instance]:
    return [Instance(request_type="", doc={}, arguments=tuple(each), idx=0) for each in arguments]


@pytest.mark.parametrize("bos", [True, False])
def test_scores_are_those_of_hf(directory, bos):
    model = HarnessModel(directory, batch_size=4, add_bos_token=bos)
    given, expected = EXPECTED["given"], EXPECTED["expected by add_bos_token"][str(bos)]
    found = model.loglikelihood(requests(*given["loglikelihood"]))
    assert found == [(pytest.approx(nats, abs=1e-4), greedy) for nats, greedy in expected["loglikelihood"]]
    rolling = model.loglikelihood_rolling(requests(*given["loglikelihood_rolling"]))
    assert rolling == pytest.approx(expected["loglikelihood_rolling"], rel=1e-6)
    assert model.generate_until(requests(*given["generate_until"])) == expected["generate_until"]


def test_a_model_in_memory_is_scored_as_its_directory(directory, model):
    pair = requests(["Licensed", " under"])
    assert HarnessModel(api.from_pretrained(directory)).loglikelihood(pair)[0] == pytest.approx(
        model.loglikelihood(pair)[0]
    )


def test_a_run_is_scored_at_any_of_its_checkpoints(tmp_path):
    loop.train(tiny.experiment(tmp_path, steps=10), tmp_path / "run", Console(quiet=True))
    text = "the print statement"
    newest, before = (HarnessModel(tmp_path / "run", checkpoint=step, max_length=64) for step in (None, 5))
    tokens = [newest.tokenizer.bos, *newest.tokenizer.encode(text)]
    logits = api.from_pretrained(tmp_path / "run")([tokens]).logits[0, :-1]
    nats = np.asarray(jax.nn.log_softmax(logits))[np.arange(len(tokens) - 1), tokens[1:]].sum()
    assert newest.loglikelihood(requests(["", text]))[0][0] == pytest.approx(nats, abs=1e-4)
    assert before.loglikelihood(requests(["", text]))[0][0] != pytest.approx(nats, abs=1e-3)
    with pytest.raises(UserError, match="is a run, scored as it was trained"):
        HarnessModel(tmp_path / "run", dtype="bfloat16")


def test_repeated_prompts_are_sampled_anew(model):
    prompts = requests(*[["Licensed", {"do_sample": True, "temperature": 2.0, "max_gen_toks": 12}]] * 8)  # two batches
    assert len(set(model.generate_until(prompts))) == 8


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"repetition_penalty": 1.2}, "generation_kwargs has repetition_penalty"),
        ({"num_beams": 4}, "generation_kwargs has num_beams"),
        ({"max_gen_toks": 256}, "max_gen_toks is 256; it must be less than max_length, 256"),
    ],
)
def test_generation_that_cannot_be_is_refused(model, settings, message):
    with pytest.raises(UserError, match=message):
        model.generate_until(requests(["Licensed", settings]))


def test_what_cannot_be_scored_is_refused(directory, model):
    with pytest.raises(UserError, match="max_length is 256; a continuation has"):
        model.loglikelihood(requests(["Licensed", " under" * 300]))
    with pytest.raises(UserError, match="batch_size is auto; give the number"):
        HarnessModel(directory, batch_size="auto")
    with pytest.raises(UserError, match="dtype is 'auto'"):
        HarnessModel(directory, dtype="auto")
    with pytest.raises(UserError, match="this model takes no lenght; it takes pretrained, checkpoint,"):
        HarnessModel(directory, lenght=256)
    with pytest.raises(UserError, match="has no tokenizer.json beside it"):
        HarnessModel(GOLDENS / "v3")


@pytest.mark.parametrize("chat, names", [(None, list(TASKS)), ("v3.2", ["choice", "generation"])])
def test_whole_tasks_run(directory, tmp_path, monkeypatch, chat, names):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    docs = [{"text": text, "label": 0} for text in ("subject to", "the terms", "and conditions of this License")]
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    data = f"dataset_path: json\ndataset_kwargs: {{data_files: {tmp_path / 'docs.jsonl'}}}\n"
    data += "test_split: train\nfewshot_split: train\n"
    for name, lines in TASKS.items():
        text = "" if name == "rolling" else "{{text}}"
        (tmp_path / f"{name}.yaml").write_text(f"task: own_{name}\n{data}doc_to_text: '{text}'\n{lines}\n")
    found = lm_eval.simple_evaluate(
        model="deepseek_jax",
        model_args={"pretrained": str(directory), "chat": chat},
        batch_size=4,
        device="cuda:0",  # what the command line passes by default
        tasks=[f"own_{name}" for name in names],
        apply_chat_template=bool(chat),
        fewshot_as_multiturn=bool(chat),
        num_fewshot=1 if chat else None,
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        bootstrap_iters=0,
    )["results"]
    assert 0 <= found["own_choice"]["acc,none"] <= 1
    assert found["own_generation"]["exact_match,none"] == 0
    assert chat or 0 < found["own_rolling"]["bits_per_byte,none"] < 20


@pytest.mark.parametrize("chat, think", [("v3", False), ("v4", False), ("v4", True)])
def test_conversations_become_the_prompts_that_generate_makes(directory, chat, think):
    model = HarnessModel(directory, chat=chat, think=think)
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "The terms?"}]
    tokens = chats.prompt(asked, chat, model.tokenizer, think)
    assert model.tok_encode(model.apply_chat_template(asked)) == tokens
    context, continuation = model._encode_pair(model.apply_chat_template(asked), "of this License")
    assert (context, continuation) == (tokens, model.tokenizer.encode("of this License"))
    assert model.tok_encode("The terms?")[0] == model.tokenizer.bos, "texts that are no conversations stay as they were"


@pytest.mark.parametrize(
    "said, answer", [("so a\n\nor b</think>\n\nIt is b.\n\nOr not.", "It is b."), ("endless\n\nthoughts", "")]
)
def test_reasoning_is_no_part_of_an_answer(directory, monkeypatch, said, answer):
    model = HarnessModel(directory, chat="v4", think=True)
    monkeypatch.setattr(HarnessModel, "_decoded", lambda self, tokens: said)
    prompt = model.apply_chat_template([{"role": "user", "content": "a or b?"}])
    assert model.generate_until(requests([prompt, {"until": ["\n\n"], "max_gen_toks": 64}])) == [answer]


def test_conversations_that_cannot_be_made_are_refused(directory, model):
    asked = {"role": "user", "content": "The terms?"}
    with pytest.raises(UserError, match="--apply_chat_template needs the model's template; add chat=v3, v3.2 or v4"):
        model.apply_chat_template([asked])
    with pytest.raises(UserError, match="has the roles user, user; user and assistant must take turns"):
        HarnessModel(directory, chat="v3").apply_chat_template([asked, asked])
    with pytest.raises(UserError, match="chat is 'v9'"):
        HarnessModel(directory, chat="v9")
    with pytest.raises(UserError, match="think needs a template with reasoning; add chat=v3.2 or chat=v4"):
        HarnessModel(directory, chat="v3", think=True)


def test_the_command_line_ends_with_one_sentence(run_python, tmp_path):
    arguments = ("run", "--model", "deepseek_jax", "--model_args", f"pretrained={tmp_path}/none", "--tasks", "wikitext")
    found = run_python("-m", "deepseek_jax.harness", *arguments)
    assert found.returncode == 2 and "deepseek_jax.harness: " in found.stderr.splitlines()[-1]
