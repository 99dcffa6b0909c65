"""deepseek-jax train."""

from deepseek_jax.cli import options, runtime


def add_to(verbs):
    parser = options.add_verb(
        verbs,
        "train",
        run,
        "train an experiment, or go on with one, in a run directory",
        f"""\
The corpus is prepared if it is not there yet.  Started again with the same run directory, a run goes on from its last
checkpoint; SIGTERM saves one first.

{options.OVERRIDES_HELP}

examples:
  deepseek-jax train --config configs/v3_tiny.py --workdir runs/v3_tiny
  deepseek-jax train --config configs/v3_tiny.py --workdir runs/mine --config.data.source=my_texts/""",
        takes_overrides=True,
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="a Python file with get_config()")
    parser.add_argument("--workdir", required=True, metavar="DIR", help="run directory: made, or gone on with")


def run(args):
    from deepseek_jax.experiment_file import resolve

    experiment = resolve(args.config, args.overrides)
    runtime.prepare()
    from rich.console import Console

    from deepseek_jax.train.loop import train

    train(experiment, args.workdir, Console())
