"""deepseek-jax quantize."""

from pathlib import Path

from deepseek_jax.cli import options, runtime
from deepseek_jax.cli.options import number
from deepseek_jax.compress.config import STORED, QuantizeConfig
from deepseek_jax.errors import UserError


def add_to(verbs):
    parser = options.add_verb(
        verbs,
        "quantize",
        run,
        "keep a trained model's matrices in few bits",
        """\
IN is a run directory, a released checkpoint or what `convert --to orbax` wrote; OUT is made: a run directory whose
checkpoint holds the small type, and which eval, generate and predict read.  With --activations the inputs of products
are rounded too, by ranges that training batches of the run give.  With --release OUT is what DeepSeek publishes, read
by from_pretrained and convert.  What it cost is printed, by validation batches of the run, and what it saved.

The model is held in float32; all in all that takes up to twice the memory of its float32 arrays.

examples:
  deepseek-jax quantize runs/v3_tiny runs/v3_int8 --weights int8 --activations int8
  deepseek-jax quantize runs/v3_tiny runs/v3_int4 --weights int4 --group 32
  deepseek-jax quantize runs/v3_tiny v3_fp8 --weights fp8 --release""",
    )
    options.add_source(parser)
    parser.add_argument("--weights", choices=STORED[1:], required=True, help="the type of the matrices")
    parser.add_argument(
        "--group", type=number(int, 0), default=0, metavar="N", help="inputs that share one scale; default: all"
    )
    parser.add_argument("--paths", default="", metavar="REGEX", help="which matrices; default: all that it is for")
    parser.add_argument("--activations", choices=("int8",), help="what inputs of products are rounded to")
    parser.add_argument(
        "--batches",
        type=number(int, 0),
        metavar="N",
        help="of validation to measure the loss, of training to calibrate; 0: do not measure; default: 4, of what is "
        "no run directory, and so has no data of its own, 0 without --activations",
    )
    parser.add_argument("--release", action="store_true", help="write safetensors as DeepSeek does; of fp8 and fp4")


@options.into_free_directory
def run(args):
    target, config = Path(args.target), _checked(args)
    batches = _batches(args)
    runtime.prepare()
    from rich.console import Console

    from deepseek_jax.compress import quantizing, source
    from deepseek_jax.compress.measure import Measure
    from deepseek_jax.train import bars

    console = Console(highlight=False, markup=False)
    given = options.read_source(args)
    measure = Measure(given, console) if args.activations else None
    with bars.converting(f"{args.source} to {target}") as show:
        if args.release:
            quantizing.release(given, target, config, show)
        else:
            quantizing.quantize(given, target, config, args.activations, measure, batches)
            show(1, 1)
    if batches:
        quantizing.print_loss(measure or Measure(given, console), given, target, batches, console)
    console.print(source.describe_bytes(target, given), soft_wrap=True)


def _batches(args) -> int:
    """A release has no data of its own: preparing some takes minutes, and scoring a large one hours."""
    if args.activations and args.batches == 0:
        raise UserError("--activations is calibrated on batches; leave out --batches 0.")
    if args.batches is None:
        from deepseek_jax import record

        return 4 if args.activations or record.is_run(args.source) else 0
    return args.batches


def _checked(args) -> QuantizeConfig:
    if args.release and args.weights not in ("fp8", "fp4"):
        raise UserError(f"--release writes fp8 and fp4, not {args.weights}.")
    if args.release and (args.paths or args.activations):
        raise UserError("--release has no use for --paths and --activations: the format says what is rounded.")
    return QuantizeConfig(weights=args.weights, group=args.group, paths=args.paths)
