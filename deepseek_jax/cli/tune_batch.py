"""deepseek-jax tune-batch."""

from deepseek_jax.cli import options, runtime
from deepseek_jax.cli.options import number


def add_to(verbs):
    parser = options.add_verb(
        verbs,
        "tune-batch",
        run,
        "find the largest batch size that fits into memory, and the fastest one",
        f"""\
Batch sizes are doubled; for each one the step is compiled, its memory is read off, and it is run if it fits.  Only
speed is measured, not how the batch size affects learning.

{options.OVERRIDES_HELP}

examples:
  deepseek-jax tune-batch --config configs/hybrid_mnist.py
  deepseek-jax tune-batch --config configs/v3_tiny.py --memory-gb 8""",
        takes_overrides=True,
    )
    options.add_config(parser)
    parser.add_argument(
        "--memory-gb", type=number(float, 0.001), metavar="GB", help="memory limit per device; default: all it has"
    )


def run(args):
    experiment = runtime.experiment_of(args.config, args.overrides)
    from deepseek_jax.train.batch_sizes import trials

    console, found = runtime.console(), []
    limit = args.memory_gb * 1e9 if args.memory_gb else None
    for trial in trials(experiment, limit):
        found.append(trial)
        speed = f"{trial.speed:10,.1f} per second" if trial.seconds else "does not fit"
        console.print(f"batch {trial.batch_size:7,}  {trial.bytes / 1e6:10,.1f} MB  {speed}")
    fitting = [trial for trial in found if trial.seconds]
    if not fitting:
        console.print("not even the smallest batch fits; make the model or the sequences smaller.")
        return
    fastest, largest = max(fitting, key=lambda trial: trial.speed), fitting[-1]
    which = "largest tried, larger ones may fit" if largest is found[-1] else "largest that fits"
    console.print(f"{which}: {largest.batch_size}; fastest: {fastest.batch_size}")
