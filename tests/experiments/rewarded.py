"""A tiny model that learns by GRPO to add digits, in one process or on several devices."""

import dataclasses
from pathlib import Path

import jax
from rich.console import Console

from deepseek_jax import plugins
from deepseek_jax.config import Experiment
from deepseek_jax.errors import UserError
from deepseek_jax.experiment_file import resolve
from deepseek_jax.train.setup import Setup, prepare
from deepseek_jax.train.start import first_state
from tests.paths import ROOT
from tests.train import tiny

QUIET = Console(quiet=True)


def experiment(directory: Path, changes: dict | None = None) -> Experiment:
    """configs/grpo_tiny.py with a model and questions that take milliseconds, on prepared data in `directory`."""
    sizes = dataclasses.asdict(dataclasses.replace(tiny.FOUR_EXPERTS, vocab_size=272))
    own = ("hidden_size", "num_hidden_layers", "intermediate_size", "moe_intermediate_size", "n_routed_experts")
    own += ("num_experts_per_tok", "n_group", "topk_group", "num_attention_heads", "q_lora_rank", "kv_lora_rank")
    own += ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "initializer_range")
    small = {f"model.{name}": sizes[name] for name in own}
    small |= {"data.directory": str(directory / "prepared"), "data.sequence_length": 64, "start.checkpoint": ""}
    small |= {"data.tokenizer": str(ROOT / "experiments/parts/sums_tokenizer.json"), "parts.sums.digits": 1}
    small |= {"parts.grpo.group_size": 4, "parts.grpo.question_tokens": 8, "parts.grpo.answer_tokens": 16}
    small |= {"train.steps": 6, "train.batch_size": 8, "optimizer.schedule.warmup_steps": 1, "checkpoint.every": 2}
    small |= {"eval.every": 0, "eval.batches": 1, "eval.final_batches": 1, "eval.samples": 0, "log.every": 1}
    return resolve(str(ROOT / "configs/grpo_tiny.py"), small | {"log.tensorboard": False} | (changes or {}))


def rewards_even_tokens(answers_NA, references_NA, eos, thought_end):
    """A reward that a new model earns half of the time, in place of grpo.is_right."""
    return answers_NA[:, 0] % 2 == 0


def prepared(directory: Path, changes: dict | None = None) -> Setup:
    return prepare(experiment(directory, changes), QUIET)


def refusal(directory: str, changes: dict) -> str:
    """The sentence with which the first step is refused."""
    setup = prepared(Path(directory), changes)
    try:
        setup.compiled_step().lower(setup.abstract, next(setup.inputs()))
    except UserError as error:
        return str(error)
    return ""


def curve(directory: str, changes: dict) -> list[list[float]]:
    """[loss, gradient norm, reward, tokens] of each step."""
    plugins.load(["experiments.parts.grpo"], "a test")
    from experiments.parts import grpo

    grpo.is_right = rewards_even_tokens
    setup = prepared(Path(directory), changes)
    step, state, found = setup.compiled_step(), first_state(setup), []
    for batch in setup.inputs():
        state, measured = step(state, batch)
        names = "loss/next", "grad_norm", "rollout/reward", "rollout/tokens"
        found.append([float(measured[name]) for name in names])
    return jax.device_get(found)
