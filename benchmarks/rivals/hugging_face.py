"""Hugging Face transformers' DeepSeek-V3 as a contestant: sdpa attention, grouped_mm experts, float32, all cores.

    python benchmarks/rivals/hugging_face.py training|decoding DIRECTORY_OF_CONFIG_JSON

Needs torch and transformers, not this package; answers through serve.py.
"""

import os
import sys

import torch
import transformers
from serve import Stopwatch, serve
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache


def make_model(directory):
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(directory), dtype=torch.float32)


def about(model):
    return {
        "program": f"transformers {transformers.__version__}, torch {torch.__version__}",
        "attention": model.config._attn_implementation,
        "experts": model.config._experts_implementation,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


def train(model):
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1)

    def play(batch, sequence, steps):
        tokens = torch.randint(0, model.config.vocab_size, (batch, sequence))
        stopwatch = Stopwatch()
        for _ in range(steps):
            with stopwatch:
                loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
                loss.backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                loss.item()
        return stopwatch.measured

    return play


def decode(model):
    """`way` is "generate", the library's own, or "loop", written by hand around its cache and its model."""
    model.eval()

    def generate(prompt, new):
        ones, fixed = torch.ones_like(prompt), {"max_new_tokens": new, "min_new_tokens": new}
        model.generate(prompt, attention_mask=ones, do_sample=False, pad_token_id=0, **fixed)

    def loop(prompt, new):
        cache, tokens = DynamicCache(config=model.config), prompt
        for _ in range(new):
            logits = model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
            tokens = logits[:, -1:].argmax(-1)

    @torch.inference_mode()
    def play(way, batch, prompt, new, repetitions):
        tokens = torch.randint(2, model.config.vocab_size, (batch, prompt))
        stopwatch = Stopwatch()
        for _ in range(repetitions):
            with stopwatch:
                {"generate": generate, "loop": loop}[way](tokens, new)
        return stopwatch.measured

    return play


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    contest, directory = sys.argv[1:]
    rival = make_model(directory)
    serve(about(rival), {"training": train, "decoding": decode}[contest](rival))
