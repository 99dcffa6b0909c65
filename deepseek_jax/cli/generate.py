"""deepseek-jax generate."""

import sys
from pathlib import Path

from deepseek_jax.checking import MOST, MOST_NEW_TOKENS
from deepseek_jax.cli import options, runtime
from deepseek_jax.cli.options import named, number, text
from deepseek_jax.data.plain_text import lines
from deepseek_jax.errors import UserError


def add_to(verbs):
    parser = options.add_verb(
        verbs,
        "generate",
        run,
        "continue prompts with a trained or released language model",
        """\
Prompts of different lengths run as one batch.  Each is printed with its continuation, separated by a line if there are
several; a model that was trained on conversations gets each prompt as a user's message.  A model with multi-token
prediction (MTP) modules can draft tokens with them: --speculative yields the same texts (in bfloat16, another token may
be chosen where two score almost equally), and reports how many drafts were accepted.

For a released model, the directory contains config.json, safetensors or pytorch_model.bin files, and tokenizer.json.
It is computed in the dtype in which it is stored; `deepseek-jax convert --dtype` writes it in another.  A chat model
needs --chat.

examples:
  deepseek-jax generate --workdir runs/v3_tiny --prompt "In the beginning" --prompt "def main("
  deepseek-jax generate --workdir runs/v3_tiny --prompts prompts.txt --temperature 0.7 --top-p 0.95 --seed 1
  echo "The bucket" | deepseek-jax generate --workdir runs/v3_tiny --prompts -
  deepseek-jax generate --workdir DeepSeek-V2-Lite --prompt "In the beginning"
  deepseek-jax generate --workdir DeepSeek-V3 --chat v3 --prompt "Who was Euler?" """,
    )
    options.add_run(parser, options.RUN_OR_RELEASE)
    prompts = parser.add_mutually_exclusive_group(required=True)
    prompts.add_argument(
        "--prompt", action="append", type=text, metavar="TEXT", help="text to continue; may be repeated"
    )
    prompts.add_argument(
        "--prompts", type=named, metavar="FILE", help="a file of prompts, one per line; - reads standard input"
    )
    parser.add_argument(
        "--max-new-tokens",
        type=number(int, 1, MOST_NEW_TOKENS),
        default=128,
        metavar="N",
        help="tokens to generate per prompt, at most; default: 128",
    )
    parser.add_argument(
        "--temperature", type=number(float, 0), default=0.0, metavar="T", help="default: 0, greedy decoding"
    )
    parser.add_argument("--top-k", type=number(int, 1), metavar="K", help="sample from the K likeliest tokens")
    parser.add_argument(
        "--top-p",
        type=number(float, 0, 1),
        metavar="P",
        help="sample from the likeliest tokens whose probabilities together reach P",
    )
    parser.add_argument("--seed", type=number(int, 0, MOST), metavar="N", help="random seed for sampling; default: 0")
    parser.add_argument(
        "--chat",
        metavar="TEMPLATE",
        help="format each prompt as a user's message: v3, v3.2 or v4; default: the run's data.chat",
    )
    parser.add_argument(
        "--think", action="store_true", help="let the model reason before it answers, in the templates v3.2 and v4"
    )
    parser.add_argument("--speculative", action="store_true", help="draft tokens with the MTP modules, to be faster")


def read_prompts(args) -> list[str]:
    """The prompts given by --prompt or --prompts; empty lines of a file are skipped."""
    if args.prompt:
        return args.prompt
    try:
        # Read as bytes: in the C locale, Python turns invalid UTF-8 on standard input into lone surrogates.
        data = sys.stdin.buffer.read() if args.prompts == "-" else Path(args.prompts).read_bytes()
        given = data.decode("utf-8-sig")  # some editors begin a file with a byte order mark (BOM)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read prompts from {args.prompts}: {reason}.") from None
    prompts = lines(given)
    if not prompts:
        raise UserError(f"{args.prompts} has no prompts; write one per line.")
    return prompts


def _check_drawing(args):
    given = [name for name in ("top_k", "top_p", "seed") if getattr(args, name) is not None]
    if given and not args.temperature:
        option = f"--{given[0].replace('_', '-')}"
        raise UserError(f"{option} only affects sampling; add --temperature 1, as without it decoding is greedy.")


def run(args):
    _check_drawing(args)
    prompts = read_prompts(args)
    from deepseek_jax import checking, record
    from deepseek_jax.config import CHAT_TEMPLATES

    found = record.family(args.workdir)  # checked before jax is imported, which takes seconds
    checking.require_family("language_model", found, args.workdir, "use `predict` for it")
    if args.chat is not None:
        checking.choice("--chat", args.chat, CHAT_TEMPLATES)
    from deepseek_jax.data import chat
    from deepseek_jax.data.tokenizer import of_model
    from deepseek_jax.infer import generate, speculative
    from deepseek_jax.infer.prompts import before_eos, beyond
    from deepseek_jax.infer.sampling import Sampling
    from deepseek_jax.train.checkpoints import any_checkpoint

    trained = any_checkpoint.read(args.workdir, args.checkpoint, dtype=None)
    template = args.chat or trained.experiment.data.chat
    if args.think and not chat.has_reasoning(template):
        why = f"the template {template} has none" if template else "the run's texts are no conversations"
        raise UserError(f"--think asks for reasoning, but {why}; leave it out, or add --chat v3.2 or --chat v4.")
    tokenizer = of_model(args.workdir, trained.experiment.model.vocab_size)
    if template:
        asked = ([{"role": "user", "content": prompt}] for prompt in prompts)
        tokens = [chat.prompt(messages, template, tokenizer, args.think) for messages in asked]
    else:
        tokens = [[tokenizer.bos, *tokenizer.encode(prompt)] for prompt in prompts]
    sampling = Sampling(args.temperature, args.top_k or 0, 1.0 if args.top_p is None else args.top_p)
    options = {"eos": tokenizer.eos, "sampling": sampling, "seed": args.seed or 0}
    if args.speculative:
        new, acceptance = speculative.new_tokens(trained.model, tokens, args.max_new_tokens, **options)
    else:
        new, acceptance = generate.new_tokens(trained.model, tokens, args.max_new_tokens, **options), None
    continued = before_eos(new, tokenizer.eos)
    console = runtime.console()
    for place, (prompt, more) in enumerate(zip(prompts, continued, strict=True)):
        if place:
            console.rule()
        print(prompt + "\n" * bool(template) + tokenizer.decode(more))  # rich would interpret markup
    lengths = [len(given) + len(more) for given, more in zip(tokens, continued, strict=True)]
    if warning := beyond(lengths, trained.experiment.model.max_position_embeddings):
        runtime.warn(warning)
    if acceptance:
        print(f"speculation: {acceptance}", file=sys.stderr)
