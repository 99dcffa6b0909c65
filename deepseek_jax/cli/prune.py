"""deepseek-jax prune."""

from pathlib import Path

from deepseek_jax.checking import pattern
from deepseek_jax.cli import options, runtime
from deepseek_jax.cli.options import number
from deepseek_jax.compress.config import METHOD_NAMES, SCOPES, PruneConfig, check_sparsity, parse_pattern, removed_by
from deepseek_jax.errors import UserError
from deepseek_jax.files import made_whole


def add_to(verbs):
    parser = options.add_verb(
        verbs,
        "prune",
        run,
        "remove weights, heads, units or experts from a trained model",
        """\
IN is a run directory, a released checkpoint or the output of `convert --to orbax`.  OUT is created: a run directory
that eval, generate and predict accept, with pruning.html on the change in loss and where weights were removed.  Methods
are calibrated, and the loss is measured, on the run's own data; for a released model, on the corpus "mix", tokenized
with the tokenizer.json in IN.

--method magnitude and wanda set single weights to zero.  To fine-tune OUT and keep these weights at zero:
  deepseek-jax train --config configs/v3_tiny.py --workdir runs/tuned --config.start.checkpoint=runs/half \\
      --config.prune.method=zeros

The model is held in float32; --method magnitude takes up to three times the memory of its float32 arrays.

examples:
  deepseek-jax prune runs/v3_tiny runs/half --sparsity 0.5 --scope global
  deepseek-jax prune runs/v3_tiny runs/wanda --method wanda --pattern 2:4
  deepseek-jax prune runs/v3_tiny runs/ticket --sparsity 0.8 --rewind 300""",
    )
    options.add_source(parser)
    parser.add_argument(
        "--method",
        choices=METHOD_NAMES,
        default="magnitude",
        help="what to remove, and how it is chosen (see docs/compression.md); default: magnitude",
    )
    parser.add_argument("--sparsity", type=float, metavar="SHARE", help="share to remove, from 0 to 1; default: 0.5")
    parser.add_argument(
        "--pattern",
        default="",
        metavar="N:M",
        help="instead of a share, keep N of every M consecutive inputs, as in 2:4",
    )
    parser.add_argument(
        "--scope",
        choices=SCOPES,
        help="where the share is taken: in each matrix (layer), in each output of each matrix, or over all matrices "
        "together; default: layer, for wanda output; not with --pattern",
    )
    parser.add_argument(
        "--paths",
        default="",
        metavar="REGEX",
        help="prune matrices whose path matches; default: all except embedding and head.  Routers, hyper-connections "
        "and depthwise convolutions are never pruned",
    )
    parser.add_argument(
        "--rewind", type=number(int, 0), metavar="STEP", help="zero the weights of this earlier checkpoint instead"
    )
    options.add_batches(parser, "how many training batches calibrate, and validation batches measure the loss")
    parser.add_argument(
        "--curve",
        type=float,
        nargs="*",
        default=[],
        metavar="SHARE",
        help="also measure the loss at these shares, for pruning.html",
    )


def run(args):
    sparsity = 0.5 if args.sparsity is None else args.sparsity
    _check(args, sparsity)
    console = runtime.console()
    with made_whole(args.target) as directory:
        from deepseek_jax.compress import pruning, source
        from deepseek_jax.train.checkpoints import any_checkpoint

        scope = args.scope or ("output" if args.method == "wanda" else "layer")
        given = options.read_source(args, console)
        pruning.prune(
            given,
            directory,
            args.method,
            PruneConfig(sparsity=sparsity, pattern=args.pattern, scope=scope, paths=args.paths),
            curve=args.curve,
            early=None if args.rewind is None else any_checkpoint.read(args.source, args.rewind),
            batches=args.batches,
            console=console,
        )
    console.print(source.describe_bytes(Path(args.target), given))


def _check(args, sparsity: float):
    """The checks that do not need jax, whose import takes seconds."""
    check_sparsity("--sparsity", sparsity)
    pattern("--paths", args.paths)
    if args.pattern:
        parse_pattern("--pattern", args.pattern)
        if args.sparsity is not None or args.curve or args.scope:
            share = f"{removed_by(args.pattern):.0%} of each output"
            raise UserError(
                f"--pattern {args.pattern} always removes {share}; leave out --sparsity, --curve and --scope."
            )
    for share in args.curve:
        check_sparsity("--curve", share)
    of_weights = args.pattern or args.scope or args.paths or args.rewind is not None
    if args.method not in ("magnitude", "wanda") and of_weights:
        raise UserError(f"--pattern, --scope, --paths and --rewind are for single weights; --method is {args.method}.")
