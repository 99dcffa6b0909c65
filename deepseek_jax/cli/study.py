"""deepseek-jax study run, study report, study list, study diff."""

import functools
from pathlib import Path

from deepseek_jax import files
from deepseek_jax.choices import STUDIES_ROOT
from deepseek_jax.cli import options, runtime
from deepseek_jax.cli.options import named, number
from deepseek_jax.errors import UserError

FILES = """\
A study file is a Python file, anywhere, that defines a variable `study`, with `from deepseek_jax.studies import Study,
Variant`; docs/studies.md shows one."""

RUN = f"""\
{FILES}

Finished runs are not repeated, and interrupted ones resume from their last checkpoint.  If a run fails, the reason is
recorded, the others continue, and the exit code is 2 at the end.  Every run keeps its directory below runs/studies.
More workers can be started at any time, on any machine that shares this directory and its file locks; they divide the
remaining runs.

examples:
  deepseek-jax study run experiments/studies/balance.py
  deepseek-jax study run experiments/studies/*.py --jobs 2
  deepseek-jax study run experiments/studies/balance.py --slurm | sbatch"""

REPORT = """\
Writes report.md, report.html, results.json and pictures to a directory results/NAME next to the study file, or, if the
file is in a directory called studies, next to that: experiments/results/balance.  If there are no runs on this machine,
the report is made from an existing results.json.

example:
  deepseek-jax study report experiments/studies/balance.py"""

LIST = f"""\
{FILES}

examples:
  deepseek-jax study list
  deepseek-jax study list my_studies/*.py"""

DIFF = """
example:
  deepseek-jax study diff runs/studies/balance/nothing-0-* runs/studies/balance/bias_update-0-*"""


def add_to(verbs):
    study = options.add_verb(verbs, "study", None, "run ablation studies and sweeps, and report their verdicts", "")
    actions = study.add_subparsers(title="verbs", metavar="VERB", required=True)
    run_ = options.add_verb(actions, "run", run, "run whatever is unfinished in studies and sweeps", RUN)
    run_.add_argument("files", nargs="+", metavar="FILE", type=Path, help="study files (see below)")
    run_.add_argument("--jobs", type=number(int, 1), default=1, metavar="N", help="worker processes; default: 1")
    run_.add_argument("--retry", action="store_true", help="try failed runs again")
    where = run_.add_mutually_exclusive_group()
    where.add_argument("--here", action="store_true", help="run in this process, without worker processes")
    one = "only do run number I, in this process; of a sweep, whichever no other worker does: a rung needs all of them"
    where.add_argument("--index", type=number(int, 0), metavar="I", help=one)
    where.add_argument("--slurm", action="store_true", help="print an sbatch script: a job array with a task per run")
    report = options.add_verb(actions, "report", run_report, "write the report of a study", REPORT)
    report.add_argument("files", nargs="+", metavar="FILE", type=Path, help="study files")
    report.add_argument("--output", type=named, metavar="DIR", help="where to write; default: results/NAME, see below")
    listing = options.add_verb(actions, "list", run_list, "show studies with their verdicts", LIST)
    listing.add_argument(
        "files", nargs="*", metavar="FILE", type=Path, help="study files; default: experiments/studies/*.py"
    )
    for parser in (run_, report, listing):
        where = "where runs are kept; default: %(default)s"
        parser.add_argument("--root", type=Path, default=STUDIES_ROOT, metavar="DIR", help=where)
    diff = options.add_verb(actions, "diff", run_diff, "show the settings in which two runs differ", DIFF)
    diff.add_argument("left", type=Path, metavar="DIR", help="a run directory")
    diff.add_argument("right", type=Path, metavar="DIR", help="another run directory")


def run(args):
    from deepseek_jax.studies import running, runs, slurm
    from deepseek_jax.studies.study import Study, load

    if args.jobs > 1 and (args.here or args.slurm or args.index is not None):
        raise UserError(
            "--jobs is for worker processes, of which --here, --index and --slurm start none; leave it out."
        )
    loaded = [load(path) for path in args.files]
    if args.slurm or args.index is not None:
        if len(loaded) > 1:
            raise UserError("--slurm and --index take one study.")
        if args.slurm:
            print(slurm.script(loaded[0], args.root, args.retry), end="")
            return
    files.check_directory(args.root)
    if args.retry:
        for study in loaded:
            running.forget_failures(study, args.root, args.index)

    say = functools.partial(print, flush=True)
    if not running.is_worker():
        for study in loaded:
            if isinstance(study.study, Study) and study.study.seeds == 1:
                say(f"{study.name}: with seeds=1 no claim can be judged; an interval needs at least 2")
    if args.here or args.index is not None:
        running.work(loaded, args.root, say, args.index)
    else:
        running.run_in_workers(args.files, args.jobs, args.root, say)
        for study in loaded:
            command = runs.command("report", study, args.root)
            say(f"{study.name}: {_state(study, args.root)}; `{command}` writes the page")
    if not running.is_worker():
        for study in loaded:
            if older := runs.of_other_code(runs.plan(study, args.root)):
                say(
                    f"{study.name}: {len(older)} of its runs were trained by a different version of the code; to "
                    f"repeat them, give another --root, or delete their directories ({older[0].directory} is one)"
                )
        _check_failures(loaded, args.root, args.index)


def _state(study, root: Path) -> str:
    """The state of the study's runs, as the beginning of a sentence."""
    from deepseek_jax.studies import running

    if left := len(running.to_do(study, root)):
        return f"{left} runs left"
    if failed := len(running.failed(study, root)):
        return f"{failed} runs failed, and none are left to do"
    return "all runs are done"


def _check_failures(studies, root: Path, index: int | None):
    """UserError if a run failed, now or earlier, so that a script does not take incomplete results for complete."""
    from deepseek_jax.studies import running

    failed = {study.name: len(runs) for study in studies if (runs := running.failed(study, root, index))}
    if failed:
        counts = ", ".join(f"{count} of {name}" for name, count in failed.items())
        raise UserError(
            f"runs failed: {counts}; `deepseek-jax study report` says why.  Fix that, and run this again with --retry."
        )


def run_report(args):
    from deepseek_jax.studies import report
    from deepseek_jax.studies.study import load

    if args.output is not None and len(args.files) > 1:
        raise UserError("--output takes one study.")
    for loaded in map(load, args.files):
        target = loaded.results if args.output is None else Path(args.output)
        files.check_directory(target)
        folder, verdict = report.write(loaded, args.root, target)
        print(f"{folder}: {verdict}")


def run_list(args):
    from rich.table import Table

    from deepseek_jax.studies import overview

    table = Table("study", "question", "runs", "verdict")
    for line in overview.lines(args.files or overview.files(), args.root):
        table.add_row(line.name, line.question, line.runs, line.verdict)
    runtime.console().print(table)


def run_diff(args):
    from deepseek_jax import fields
    from deepseek_jax.studies import overview

    for key, *sides in overview.diff(args.left, args.right):
        left, right = ("absent" if side is None else fields.shown(side) for side in sides)
        print(f"{key}: {left} in the first, {right} in the second")
