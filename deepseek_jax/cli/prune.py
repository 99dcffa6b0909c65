"""deepseek-jax prune."""

from pathlib import Path

from deepseek_jax.checking import pattern
from deepseek_jax.cli import options, runtime
from deepseek_jax.cli.options import number
from deepseek_jax.compress.config import METHOD_NAMES, SCOPES, PruneConfig, check_sparsity, parse_pattern, removed_by
from deepseek_jax.errors import UserError


def add_to(verbs):
    parser = options.add_verb(
        verbs,
        "prune",
        run,
        "take weights, heads, units or experts out of a trained model",
        """\
IN is a run directory, a released checkpoint or what `convert --to orbax` wrote; OUT is made: a run directory that eval,
generate and predict read, with pruning.html on what it cost and where weights were removed.  Data of the run (of a
released model: the corpus "mix", as tokens of the tokenizer.json beside it) measures and calibrates.

Single weights, by magnitude or wanda, become zeros; fine-tuning begins from OUT and keeps them:
  deepseek-jax train --config configs/v3_tiny.py --workdir runs/tuned --config.start.checkpoint=runs/half \\
      --config.prune.method=zeros

The model is held in float32; --method magnitude takes up to three times the memory of its float32 arrays.

examples:
  deepseek-jax prune runs/v3_tiny runs/half --sparsity 0.5 --scope global
  deepseek-jax prune runs/v3_tiny runs/wanda --method wanda --pattern 2:4
  deepseek-jax prune runs/v3_tiny runs/ticket --sparsity 0.8 --rewind 300""",
    )
    options.add_source(parser)
    parser.add_argument("--method", choices=METHOD_NAMES, default="magnitude", help="default: magnitude")
    parser.add_argument("--sparsity", type=float, metavar="SHARE", help="share to remove; default: 0.5")
    parser.add_argument("--pattern", default="", metavar="N:M", help="keep N of every M inputs in a row, as in 2:4")
    parser.add_argument("--scope", choices=SCOPES, help="what the share is of; default: layer, for wanda output")
    parser.add_argument("--paths", default="", metavar="REGEX", help="which matrices; default: all but tables, routers")
    parser.add_argument(
        "--rewind", type=number(int, 0), metavar="STEP", help="put the masks on the weights of that checkpoint"
    )
    options.add_batches(parser, "of training to calibrate, of validation to measure")
    parser.add_argument("--curve", type=float, nargs="*", default=[], metavar="SHARE", help="further shares to measure")


@options.into_free_directory
def run(args):
    sparsity = 0.5 if args.sparsity is None else args.sparsity
    _check(args, sparsity)
    runtime.prepare()
    from rich.console import Console

    from deepseek_jax.compress import pruning, source

    scope = args.scope or ("output" if args.method == "wanda" else "layer")
    console = Console(highlight=False, markup=False)
    given = options.read_source(args)
    pruning.prune(
        given,
        Path(args.target),
        args.method,
        PruneConfig(sparsity=sparsity, pattern=args.pattern, scope=scope, paths=args.paths),
        curve=args.curve,
        early=None if args.rewind is None else source.read(args.source, args.rewind),
        batches=args.batches,
        console=console,
    )
    console.print(source.describe_bytes(Path(args.target), given), soft_wrap=True)


def _check(args, sparsity: float):
    """What can be told before the seconds that jax takes."""
    check_sparsity("--sparsity", sparsity)
    pattern("--paths", args.paths)
    if args.pattern:
        parse_pattern("--pattern", args.pattern)
        if args.sparsity is not None or args.curve:
            share = f"{removed_by(args.pattern):.0%}"
            raise UserError(f"--pattern {args.pattern} removes {share}; leave out --sparsity and --curve beside it.")
    for share in args.curve:
        check_sparsity("--curve", share)
    of_weights = args.pattern or args.scope or args.paths or args.rewind is not None
    if args.method not in ("magnitude", "wanda") and of_weights:
        raise UserError(f"--pattern, --scope, --paths and --rewind are of single weights; --method is {args.method}.")
