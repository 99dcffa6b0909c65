"""deepseek-jax find-lr."""

from pathlib import Path

from deepseek_jax import files
from deepseek_jax.cli import options, runtime
from deepseek_jax.cli.options import named, number
from deepseek_jax.errors import UserError


def add_to(verbs):
    parser = options.add_verb(
        verbs,
        "find-lr",
        run,
        "train briefly with a growing learning rate, and suggest one (a learning-rate range test)",
        f"""\
The rate grows from --low to --high by the same factor every step.  The suggestion is the rate at which the loss falls
fastest; look at the curve before you trust it: some of its points are printed, and --picture draws it.
A config that begins from a checkpoint (start.checkpoint) is tested on that model; the optimizer begins anew, also with
start.full_state.

{options.OVERRIDES_HELP}

example:
  deepseek-jax find-lr --config configs/hybrid_mnist.py --picture lr.png""",
        takes_overrides=True,
    )
    options.add_config(parser)
    parser.add_argument(
        "--low", type=number(float, 1e-12), default=1e-6, metavar="RATE", help="first learning rate; default: 1e-6"
    )
    parser.add_argument(
        "--high", type=number(float, 1e-12), default=1.0, metavar="RATE", help="last learning rate; default: 1"
    )
    parser.add_argument("--steps", type=number(int, 3), default=200, metavar="N", help="training steps; default: 200")
    parser.add_argument("--picture", type=named, metavar="FILE", help="draw the loss curve to this PNG file")


def run(args):
    if args.low >= args.high:
        raise UserError(f"--low is {args.low} and --high {args.high}; the rate has to grow.")
    if args.picture is not None:
        files.check_file(Path(args.picture))
    experiment = runtime.experiment_of(args.config, args.overrides)
    from deepseek_jax.train.lr_range import range_test

    console = runtime.console()
    found = range_test(experiment, args.low, args.high, args.steps, console)
    for rate, loss in found.points():
        console.print(f"rate {rate:8.2g}  loss {loss:.4f}")
    where = ""
    if args.picture is not None:
        Path(args.picture).write_bytes(found.picture())
        where = f"   (see the curve in {args.picture})"
    console.print(f"--config.optimizer.peak_lr={found.suggested:.2g}{where}")
