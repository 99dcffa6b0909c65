"""deepseek-jax quantize."""

from pathlib import Path

from deepseek_jax.cli import options, runtime
from deepseek_jax.cli.options import number
from deepseek_jax.compress.config import STORED, QuantizeConfig
from deepseek_jax.errors import UserError
from deepseek_jax.files import made_whole


def add_to(verbs):
    parser = options.add_verb(
        verbs,
        "quantize",
        run,
        "store a trained model's matrices in int8, int4, fp8 or fp4",
        """\
IN is a run directory, a released checkpoint or the output of `convert --to orbax`.  OUT is created: a run directory
whose checkpoint is stored in the small type, and which eval, generate and predict accept; or with --release, files in
DeepSeek's format, which from_pretrained and convert accept.  With --activations, the inputs of matrix products are
rounded too, over ranges found on the run's training batches.  Prints the loss on the run's validation batches before
and after, and the size of OUT.

The model is held in float32; in total this takes up to twice the memory of its float32 arrays.

examples:
  deepseek-jax quantize runs/v3_tiny runs/v3_int8 --weights int8 --activations int8
  deepseek-jax quantize runs/v3_tiny runs/v3_int4 --weights int4 --group 32
  deepseek-jax quantize runs/v3_tiny v3_fp8 --weights fp8 --release""",
    )
    options.add_source(parser)
    parser.add_argument("--weights", choices=STORED[1:], required=True, help="the type to store matrices in")
    parser.add_argument(
        "--group",
        type=number(int, 0),
        default=0,
        metavar="N",
        help="for int8 and int4: how many inputs of an output share a scale; default: all",
    )
    parser.add_argument(
        "--paths",
        default="",
        metavar="REGEX",
        help="quantise matrices whose path matches; default: all, for fp8 and fp4 except embedding and head.  Routers, "
        "hyper-connections and depthwise convolutions are never quantised",
    )
    parser.add_argument("--activations", choices=("int8",), help="also round the inputs of matrix products to this")
    parser.add_argument(
        "--batches",
        type=number(int, 0),
        metavar="N",
        help="how many validation batches measure the loss (0: do not measure it), and training batches calibrate "
        "--activations; default: 4, but 0 if IN is not a run directory, so has no data, and --activations is not given",
    )
    parser.add_argument(
        "--release", action="store_true", help="write safetensors in DeepSeek's release format; for fp8 and fp4"
    )


def run(args):
    target, config = Path(args.target), _checked(args)
    batches = _batches(args)
    console = runtime.console()
    with made_whole(target) as directory:
        from deepseek_jax.compress import quantizing, source
        from deepseek_jax.compress.measure import Measure
        from deepseek_jax.train.reporting import bars

        given = options.read_source(args, console)
        measure = Measure(given, console) if args.activations else None
        if args.release:
            with bars.stages(console) as report:
                quantizing.release(given, directory, config, report)
        else:
            with console.status("quantizing"):
                quantizing.quantize(given, directory, config, args.activations, measure, batches)
    if batches:
        quantizing.print_loss(measure or Measure(given, console), given, target, batches, console)
    console.print(source.describe_bytes(target, given))


def _batches(args) -> int:
    """--batches or its default: a release is not scored unless asked, as preparing data and scoring may take hours."""
    if args.activations and args.batches == 0:
        raise UserError("--activations needs batches for its calibration; leave out --batches 0.")
    if args.batches is None:
        from deepseek_jax import record

        return 4 if args.activations or record.kind(args.source) == "run" else 0
    return args.batches


def _checked(args) -> QuantizeConfig:
    if args.release and args.weights not in ("fp8", "fp4"):
        raise UserError(f"--release writes fp8 and fp4, not {args.weights}.")
    if args.release and (args.paths or args.activations):
        raise UserError("--release excludes --paths and --activations: its format determines what is rounded.")
    return QuantizeConfig(weights=args.weights, group=args.group, paths=args.paths)
