"""deepseek-jax esft."""

from deepseek_jax.cli import options, runtime
from deepseek_jax.cli.options import number
from deepseek_jax.errors import UserError


def add_to(verbs):
    parser = options.add_verb(
        verbs,
        "esft",
        run,
        "choose the routed experts that a task uses, to train only those (ESFT)",
        f"""\
Runs the model that the config begins from (start.checkpoint) over some of its training text, and prints of each layer
the fewest experts that do --threshold of the work together, as a setting to train with.

{options.OVERRIDES_HELP}

example:
  deepseek-jax train --config configs/esft_tiny.py --workdir runs/esft \\
    --config.tune.experts="$(deepseek-jax esft --config configs/esft_tiny.py --threshold 0.35)\"""",
        takes_overrides=True,
    )
    options.add_config(parser)
    parser.add_argument("--threshold", type=number(float, 0, 1), required=True, metavar="P", help="share of the work")
    parser.add_argument(
        "--score",
        choices=("token", "gate"),
        default="token",
        help="work is the share of tokens sent to an expert, or of routing weight; default: token",
    )
    options.add_batches(parser, "microbatches", default=32)


def run(args):
    from deepseek_jax.experiment_file import resolve

    experiment = resolve(args.config, args.overrides)
    if experiment.family != "language_model":
        raise UserError(f"{args.config} is of a hybrid network, which has no experts; give one of a language model.")
    runtime.prepare()
    from rich.console import Console

    from deepseek_jax.train.expert_use import expert_use
    from deepseek_jax.tune.esft import as_setting, choose

    console = Console(stderr=True, markup=False)  # the setting alone goes to standard output
    shares = expert_use(experiment, args.batches, console)[args.score]
    chosen = choose(shares, args.threshold)
    for layer, experts in chosen.items():
        share = shares[layer][experts].sum()
        console.print(f"layer {layer}: {len(experts)} of {len(shares[layer])} experts do {share:.1%}", highlight=False)
    print(as_setting(chosen))
