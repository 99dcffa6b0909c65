"""deepseek-jax esft."""

from deepseek_jax.checking import require_family
from deepseek_jax.cli import options, runtime
from deepseek_jax.cli.options import number
from deepseek_jax.errors import UserError


def add_to(verbs):
    parser = options.add_verb(
        verbs,
        "esft",
        run,
        "choose the routed experts that a task uses most, to train only those (ESFT, arXiv:2407.01906)",
        f"""\
Runs the model that the config starts from (start.checkpoint) on some of the config's training text.  Prints the fewest
experts of each layer that together do the share --threshold of the work, as a value for tune.experts.

{options.OVERRIDES_HELP}

example:
  deepseek-jax train --config configs/esft_tiny.py --workdir runs/esft \\
    --config.tune.experts="$(deepseek-jax esft --config configs/esft_tiny.py --threshold 0.35)\"""",
        takes_overrides=True,
    )
    options.add_config(parser)
    parser.add_argument(
        "--threshold", type=number(float, 0, 1), required=True, metavar="P", help="share of the work, above 0 up to 1"
    )
    parser.add_argument(
        "--score",
        choices=("token", "gate"),
        default="token",
        help="measure work by the tokens sent to an expert, or by their routing weight (gate); default: token",
    )
    options.add_batches(parser, "how many microbatches to run", default=32)


def run(args):
    if not args.threshold:
        raise UserError("--threshold is 0, for which no expert is needed; give a share above 0, such as 0.35.")
    experiment = runtime.experiment_of(args.config, args.overrides)
    instead = "give a config of a language model with experts"
    require_family("language_model", experiment.family, args.config, instead)
    from deepseek_jax.train.expert_use import expert_use
    from deepseek_jax.tune.esft import as_setting, choose

    console = runtime.console(stderr=True)  # standard output gets only the setting
    shares = expert_use(experiment, args.batches, console)[args.score]
    chosen = choose(shares, args.threshold)
    for layer, experts in chosen.items():
        share = shares[layer][experts].sum()
        console.print(f"layer {layer}: {len(experts)} of {len(shares[layer])} experts do {share:.1%}")
    print(as_setting(chosen))
