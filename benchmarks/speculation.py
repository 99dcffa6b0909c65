"""Speculative against plain decoding of a trained model, and the share of its drafts that is accepted.

    python -m benchmarks.speculation --workdir runs/v3_tiny --json out.json

Generates 64 greedy tokens after 32 of held-out text, in turn with and without drafts, and checks that they are equal.
"""

import argparse
import json
import time
from pathlib import Path

from benchmarks.contest import alternate, summary, table
from benchmarks.sizes import DECODE_BATCHES, NEW, PROMPT
from deepseek_jax.cli import runtime


def measure(workdir: Path, rounds: int) -> dict[str, dict]:
    """{batch size: {"summaries": by contestant, "acceptance": text}}"""
    import numpy as np

    from deepseek_jax.data.pipeline import open_corpus
    from deepseek_jax.infer import generate, speculative
    from deepseek_jax.train.checkpoints.restore import restore_model

    trained = restore_model(workdir)
    corpus = open_corpus(trained.experiment.data, trained.experiment.model.vocab_size)
    model, results = (trained.graphdef, trained.params, trained.buffers), {}
    for batch in DECODE_BATCHES:
        prompts, said = held_out_prompts(corpus, batch), {}

        def play(name, decode, prompts=prompts, said=said):
            wall, cpu = time.perf_counter(), time.process_time()
            said[name] = decode(model, prompts, NEW)
            return {"seconds": [time.perf_counter() - wall], "cpu_seconds": [time.process_time() - cpu]}

        rounds_of = alternate(
            {
                "plain": lambda play=play: play("plain", generate.new_tokens),
                "speculative": lambda play=play: play("speculative", speculative.new_tokens),
            },
            rounds,
        )
        tokens, acceptance = said["speculative"]
        np.testing.assert_array_equal(tokens, said["plain"])
        summaries = {name: summary(measured, batch * NEW) for name, measured in rounds_of.items()}
        results[batch] = {"summaries": summaries, "acceptance": str(acceptance)}
    return results


def held_out_prompts(corpus, batch: int) -> list[list[int]]:
    """`batch` prompts of held-out text, from all domains in turn, each from a different place in its text."""
    texts = [corpus.held_out_text(domain) for domain in corpus.domains]
    prompts = []
    for row in range(batch):
        text = texts[row % len(texts)]
        start = len(text) * row // batch
        words = corpus.tokenizer.encode(text[start : start + 40 * PROMPT].decode(errors="ignore"))
        prompts.append([corpus.tokenizer.bos, *words[: PROMPT - 1]])
    return prompts


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True, metavar="DIR", help="a run of a model with MTP modules")
    parser.add_argument("--rounds", type=int, default=9, metavar="N", help="rounds of each (default: 9)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write everything measured")
    args = parser.parse_args()

    runtime.prepare()  # as the command line does, before anything imports jax
    results = measure(args.workdir, args.rounds)
    for batch, found in results.items():
        print(f"\n{table(f'decoding, batch {batch}, {PROMPT} + {NEW}', found['summaries'])}\n{found['acceptance']}")
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    runtime.script(main)
