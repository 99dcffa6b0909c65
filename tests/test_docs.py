"""The documents are true: every command line parses, every block of Python runs, every link has a target."""

import contextlib
import dataclasses
import re
import runpy
import shlex
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import deepseek_jax
from deepseek_jax.cli import arguments
from deepseek_jax.data.tokenizer import train_bpe
from deepseek_jax.errors import UserError
from deepseek_jax.experiment_file import resolve
from deepseek_jax.models.presets import preset
from deepseek_jax.train.reporting.sinks import read_rows
from tests.paths import GOLDENS, ROOT
from tests.train import tiny

DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "benchmarks/*.md", "experiments/**/*.md", "configs/*.py")
    for path in ROOT.glob(pattern)
)
PROGRAM = re.compile(r"^\s*(?:\$ )?(?:time )?(?:deepseek-jax|python -m deepseek_jax) +(\S.*)")
CONTINUED = re.compile(r"\\\n\s*")
COMPLAINT = "deepseek-jax: "
STANDS_FOR = re.compile(r"^[A-Z_]+$|^\.\.\.$")  # placeholders: FILE, OUT, ...


def commands(document: Path) -> list[tuple[list[str], str]]:
    """For each command line in a document: (its arguments, up to a comment, pipe or redirection; the error message that
    the document shows below it, or "")."""
    lines = CONTINUED.sub("", document.read_text()).splitlines()
    found = []
    for line, after in zip(lines, [*lines[1:], ""]):
        if match := PROGRAM.match(line):
            found.append((_words(match[1]), after.strip() if COMPLAINT in after else ""))
    return found


def _words(line: str) -> list[str]:
    words = shlex.split(re.sub(r"\$\([^()]*\)", "0: 1", line), comments=True)
    ends = [place for place, word in enumerate(words) if re.fullmatch(r"[|>&;]+|\d?>.*", word)]
    return words[: min(ends, default=len(words))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_command_lines_in_documents_parse_or_fail_as_shown(document, monkeypatch):
    monkeypatch.chdir(ROOT)
    for words, complaint in commands(document):
        if any(map(STANDS_FOR.match, words)):
            continue
        with pytest.raises(UserError) if complaint else contextlib.nullcontext() as caught:
            args = arguments.read(words)
            config = getattr(args, "config", None)
            if args.takes_overrides and config and Path(config).exists():
                resolve(config, args.overrides)
        if complaint:
            assert complaint == f"{COMPLAINT}{caught.value}"


def test_the_documents_contain_command_lines():
    assert sum(len(commands(document)) for document in DOCUMENTS) > 60


@pytest.mark.parametrize(
    "document", [path for path in DOCUMENTS if path.suffix == ".md"], ids=lambda path: str(path.relative_to(ROOT))
)
def test_links_lead_somewhere(document):
    links = re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", document.read_text())
    for target, anchor in ((target, anchor) for target, anchor in links if "://" not in target):
        path = document.parent / target if target else document
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), f"{target}#{anchor}"


def anchors(document: Path) -> set[str]:
    """What GitHub makes of a document's headings: lower case, without punctuation, a hyphen for each space."""
    headings = re.findall(r"^#+ +(.+?) *$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def blocks(name: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / name).read_text(), re.DOTALL | re.MULTILINE)


def test_the_code_in_the_readme_runs(monkeypatch, tmp_path):
    """On a tiny V2-Lite with a tokenizer of bytes, in the directory that README.md names, and a tiny experiment."""
    (block,) = (block for block in blocks("README.md") if "from_pretrained" in block)
    train_bpe([], 400, tmp_path / "tokenizer.json")
    sizes = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 32, "moe_intermediate_size": 16}
    sizes |= {"vocab_size": 400, "n_routed_experts": 8, "num_attention_heads": 2, "kv_lora_rank": 16}
    config = dataclasses.replace(preset("v2-lite"), **sizes)
    deepseek_jax.save_pretrained(deepseek_jax.from_config(config), tmp_path / "v2_lite")
    shutil.copy(tmp_path / "tokenizer.json", tmp_path / "v2_lite")
    monkeypatch.chdir(tmp_path)

    def resolve_smaller(path, overrides):
        resolve(str(ROOT / path), overrides)
        return tiny.experiment(tmp_path, steps=6)

    monkeypatch.setattr("deepseek_jax.resolve", resolve_smaller, raising=False)
    names = {"input_ids": np.arange(24).reshape(2, 12)}
    exec(block, names)
    assert "final/loss" in names["scores"] and names["tokens"].shape == (1, 16)
    assert names["loss"] > 0 and names["found"].logits.shape == (2, 12, 400)


def test_the_code_in_docs_models_runs(monkeypatch, tmp_path):
    """Runs the code of docs/models.md on a tiny V3.2, which has every part that the page mentions."""
    whole, new, traced, apart, inside = blocks("docs/models.md")
    monkeypatch.chdir(tmp_path)
    names = {"input_ids": np.arange(24).reshape(2, 12) % 50, "prompts": [[1, 2, 3], [4, 5]]}
    model = GOLDENS / "v32"
    exec(whole.replace('"DeepSeek-V2-Lite", dtype="bfloat16"', f'"{model}"'), names)
    assert (tmp_path / "copy").is_dir() and names["tokens"].shape == (2, 16)
    exec(new.replace("layers=2", "layers=2, hidden_size=32, vocab_size=64, intermediate_size=16"), dict(names))
    exec(traced, names)
    np.testing.assert_allclose(names["found"].logits, names["scores"].logits, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(names["patched"].feed_forward[1][:, 3], names["state"][:, 5])
    assert names["experts"].shape == (2, 12, names["model"].config.num_experts_per_tok)
    exec(apart.replace('"1-3"', '"1-2"'), names)  # this model has one layer fewer than v3_tiny
    assert names["lens"].shape == names["scores"].logits.shape
    assert not names["changed"].params["layers"]["1-2"]["feed_forward"]["experts"]["down"][0, 5].any()
    exec(inside, names)
    after = jax.jit(type(names["block"]).__call__)(names["block"], names["state"], names["context"])[0]
    np.testing.assert_allclose(after, names["found"].feed_forward[2], rtol=1e-4, atol=1e-4)


def test_settings_and_studies_in_documents_run(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))
    for name in ("README.md", "docs/studies.md"):
        for block in blocks(name):
            if "study =" in block:
                exec(block, {})
    names = {}
    exec(blocks("docs/configs.md")[0], names)
    assert names["get_config"]().model.num_hidden_layers == 4
    (sets,) = blocks("docs/hybrid_data.md")
    exec(sets, {})


def test_the_module_in_docs_architecture_is_the_one_that_it_names():
    (block,) = blocks("docs/architecture.md")
    assert (ROOT / "experiments/parts/gated.py").read_text().endswith(f'"""\n\n{block}')


def test_the_code_in_docs_runs_runs(monkeypatch, tmp_path, capsys):
    """On a tiny experiment: what a run wrote is read, a loss and a loop of one's own train."""
    read, own, loop = blocks("docs/runs.md")
    (tmp_path / "runs/x").mkdir(parents=True)
    (tmp_path / "runs/x/metrics.jsonl").write_text('{"step": 1, "loss/next": 2.5}\n{"step": 1, "val/loss": 2.4}\n')
    monkeypatch.chdir(tmp_path)
    plotted = []
    monkeypatch.setattr("matplotlib.pyplot.plot", lambda *lines: plotted.append(lines))
    exec(read, {})
    assert plotted == [([1], [2.5])]
    experiment = tiny.experiment(tmp_path, steps=6)
    monkeypatch.setattr("deepseek_jax.resolve", lambda path, overrides={}: experiment, raising=False)
    (tmp_path / "own.py").write_text(own)  # a file: `change` is known by its source
    assert "final/loss" in runpy.run_path("own.py")["scores"]
    (tmp_path / "runs/penalised/config.json").read_text().index('"change": "penalised-')
    assert all(row["loss/squares"] > 0 for row in read_rows("runs/penalised/metrics.jsonl") if "loss/next" in row)
    capsys.readouterr()
    exec(loop, {})
    losses = [float(loss) for loss in re.findall(r"^\d (\S+)$", capsys.readouterr().out, re.MULTILINE)]
    rows = [row["loss/next"] for row in read_rows("runs/penalised/metrics.jsonl") if "loss/next" in row]
    assert losses == pytest.approx(rows, rel=1e-3)  # a penalty this small hardly changes the losses


def test_configs_state_the_scores_and_speeds_of_the_readme():
    """Both are measured anew now and then; the readme has the whole output of v3_tiny's own run, beside its table."""
    readme = (ROOT / "README.md").read_text()
    shown = {
        name: cells for name, *cells in re.findall(r"^\| `(\w+)_tiny` \|.*\| (\S+) \| (\S+) \|$", readme, re.MULTILINE)
    }
    shown["v3"] = re.search(r"bits per byte +│ (\S+)(?s:.*?)tokens/s +│ (\S+)", readme).groups()
    assert len(shown) == 6
    for name, (bits, speed) in shown.items():
        docstring = (ROOT / f"configs/{name}_tiny.py").read_text().split('"""')[1]
        assert f"{speed} tokens/s" in docstring and re.search(rf"bits per byte.*: {bits}\b", docstring), name
