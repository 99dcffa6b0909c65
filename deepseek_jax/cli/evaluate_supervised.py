"""deepseek-jax eval for a run of the hybrid network."""

from pathlib import Path

from rich.table import Table

from deepseek_jax.cli import runtime
from deepseek_jax.errors import UserError
from deepseek_jax.parallel import processes
from deepseek_jax.parallel.mesh import mesh_of_scored
from deepseek_jax.train import setup
from deepseek_jax.train.checkpoints import dataset_record
from deepseek_jax.train.checkpoints.restore import restore_model
from deepseek_jax.train.reporting import bars
from deepseek_jax.train.scoring import scoring_experiment


def run(args):
    console = runtime.console(quiet=not processes.is_leader())
    trained = restore_model(args.workdir, args.checkpoint, mesh_of_scored)
    experiment = scoring_experiment(trained.experiment, args.batch_size or 0)
    scoring = setup.prepare(experiment, console)
    dataset_record.check(scoring.task.dataset, Path(args.workdir))
    scores = scoring.scores(trained.params, trained.buffers, "final")
    if not scores:
        share = experiment.dataset.test
        raise UserError(
            f"nothing of {experiment.dataset.name} is held out to score: dataset.test is {share}, which is less than "
            "one record; raise it."
        )
    what = f"step {trained.step} of {args.workdir} on the test split of {experiment.dataset.name}:"
    console.print(what)
    table = Table(show_header=False)
    with bars.stages(console) as report:
        baselines = scoring.task.baselines(report)
    for name, value in (scores | baselines).items():
        table.add_row(name, f"{value:.5g}")
    console.print(table)
