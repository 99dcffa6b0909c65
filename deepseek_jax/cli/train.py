"""deepseek-jax train."""

import argparse

from deepseek_jax.cli import options, runtime
from deepseek_jax.cli.options import named
from deepseek_jax.errors import UserError


def add_to(verbs):
    parser = options.add_verb(
        verbs,
        "train",
        run,
        "train a model in a run directory, or resume the run that is there",
        f"""\
The corpus is prepared first if that has not been done.  Started again with the same run directory, a run resumes from
its last checkpoint.  SIGTERM and the first Ctrl-C save a checkpoint and end the run; a second Ctrl-C ends it at once.

{options.OVERRIDES_HELP}

To train in several processes, start them all with the same command, by SLURM, Kubernetes, Open MPI or on Cloud TPU, or
with JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID set in each; see docs/hosts.md.

examples:
  deepseek-jax train --config configs/v3_tiny.py --workdir runs/v3_tiny
  deepseek-jax train --config configs/v3_tiny.py --workdir runs/mine --config.data.source=my_texts/
  deepseek-jax train --config configs/v3_tiny.py --workdir runs/longer --config.train.steps=800 \\
    --config.start.checkpoint=runs/v3_tiny --config.start.full_state=true""",
        takes_overrides=True,
    )
    options.add_config(parser)
    parser.add_argument(
        "--workdir", type=named, required=True, metavar="DIR", help="run directory: created, or resumed if it exists"
    )
    parser.add_argument(
        "--profile", type=_steps, default=range(0), metavar="FIRST:LAST", help="trace these steps with jax.profiler"
    )
    parser.add_argument(
        "--fail-when-stopped",
        action="store_true",
        help="exit with status 75, not 0, if SIGTERM stopped the run: for schedulers that restart only failed jobs",
    )


def _steps(text: str) -> range:
    """
    >>> _steps("10:13")
    range(10, 14)
    """
    first, colon, last = text.partition(":")
    if not (colon and first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a range of steps such as 10:13")
    return range(int(first), int(last) + 1)


def run(args) -> int:
    from deepseek_jax.experiment_file import resolve

    experiment = resolve(args.config, args.overrides)
    asked, steps = args.profile, experiment.train.steps
    if asked and asked.start > steps:
        raise UserError(f"--profile begins at step {asked.start}, but train.steps is {steps}; name steps up to that.")
    from deepseek_jax.parallel import processes
    from deepseek_jax.train import preemption, profile
    from deepseek_jax.train.loop import train

    with processes.together():
        if processes.is_leader():
            runtime.warn_of_unused(experiment, args.overrides)
        before = profile.traces(args.workdir)
        train(experiment, args.workdir, profile=asked)
        if asked and processes.is_leader() and profile.traces(args.workdir) == before:
            runtime.warn(
                f"nothing was traced: the steps {asked[0]} to {asked[-1]} of --profile were done already, or the run "
                "ended before them; name steps that are still to come."
            )
    return processes.AGAIN if args.fail_when_stopped and preemption.heard() else 0
