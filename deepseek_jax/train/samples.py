"""Text that a trained model continues, for a person to read."""

import json
import math
from pathlib import Path

from deepseek_jax.config import Experiment
from deepseek_jax.data import chat
from deepseek_jax.data.pipeline import SEPARATOR, Corpus
from deepseek_jax.infer.generate import generate
from deepseek_jax.infer.sampling import Sampling
from deepseek_jax.parallel import processes
from deepseek_jax.train.program import Program
from deepseek_jax.train.state import State, scored_model

FILE = "samples.txt"
PROMPT = 48  # bytes of held-out text that a sample goes on from
SAMPLING = Sampling(temperature=0.8, top_p=0.95)
BAR = "\n" + "-" * 80 + "\n"


def write_samples(experiment: Experiment, corpus: Corpus, program: Program, state: State, workdir: Path) -> list[str]:
    """As many texts as eval.samples asks for, each begun as a domain's held-out text begins; also in samples.txt.

    Of conversations they are answers to the questions held out.
    """
    config, tokenizer = experiment.eval, corpus.tokenizer
    template, count = experiment.data.chat, len(corpus.domains)
    documents = math.ceil(config.samples / count) if template else PROMPT  # each has a byte or more: its separator
    read = [corpus.held_out_text(domain, documents) for domain in corpus.domains[: config.samples]]
    heads = [read[place % count] for place in range(config.samples)]
    if not heads:
        return []
    if template:
        talks = [json.loads(text) for text in questions(heads, count) if text]
        if not talks:
            return []
        prompts = [f"{talk[-2]['content']}\n" for talk in talks]
        tokens = [chat.prompt(talk[:-1], template, tokenizer) for talk in talks]
    else:
        prompts = [head[:PROMPT].decode(errors="ignore") for head in heads]
        tokens = [[tokenizer.bos, *tokenizer.encode(prompt)] for prompt in prompts]
    model = program.graphdef, *program.to_model(*scored_model(state))
    seed = experiment.train.seed
    continued = generate(model, tokens, config.sample_tokens, eos=tokenizer.eos, sampling=SAMPLING, seed=seed)
    texts = [prompt + tokenizer.decode(new) for prompt, new in zip(prompts, continued, strict=True)]
    if processes.is_leader():
        (workdir / FILE).write_text(BAR.join(texts) + "\n")
    return texts


def questions(heads: list[bytes], domains: int) -> list[bytes]:
    """For each sample a conversation of its domain, one after another, the first again after the last; b"" for none."""
    split = [head.removesuffix(SEPARATOR).split(SEPARATOR) for head in heads]
    return [texts[place // domains % len(texts)] for place, texts in enumerate(split)]
