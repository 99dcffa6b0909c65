"""deepseek-jax compile."""

from pathlib import Path

from deepseek_jax import files
from deepseek_jax.cli import options, pods
from deepseek_jax.cli.options import named
from deepseek_jax.errors import UserError


def add_to(verbs):
    parser = options.add_verb(
        verbs,
        "compile",
        run,
        "compile a training step for a TPU or GPU cluster that you need not have, and report whether it fits",
        f"""\
No TPU or GPU is needed, only its compiler; in the checkout, run pip install -e '.[tpu]' or '.[gpu]'.  The report shows
memory, estimated step time and communication.  A large model takes minutes and several GB of memory to compile;
JAX_OPTIMIZATION_LEVEL=O1 in the environment makes it faster, with nearly the same report.

{options.OVERRIDES_HELP}

examples:
  deepseek-jax compile --config configs/v3_671b.py --topology v5p:8x8x16
  deepseek-jax compile --config configs/v2_236b.py --topology v5p:8x8x8 --mesh fsdp=32,expert=16 \\
      --config.train.microbatch_size=512 --out reports/v2""",
        takes_overrides=True,
    )
    # The compile cache can store an executable for absent devices, but not load it again.
    parser.set_defaults(compile_cache=False)
    pods.add_options(parser)
    parser.add_argument(
        "--out", type=named, metavar="DIR", help="also save the report (report.md, report.json) and the HLO here"
    )


def run(args):
    if args.out is not None:
        files.check_directory(Path(args.out))
    from deepseek_jax.pods import devices

    topology = pods.topology(args)
    devices.prepare(topology)
    experiment = pods.experiment(args)  # not before: plugins import jax
    from deepseek_jax.parallel.mesh import make_mesh
    from deepseek_jax.pods import report
    from deepseek_jax.pods.compiling import compile_for
    from deepseek_jax.train.abstract import describe
    from deepseek_jax.train.refusals import refusals

    mesh = make_mesh(experiment.mesh, devices.devices_of(topology))
    if refused := refusals(experiment, mesh):
        raise UserError(refused[0])
    abstract = describe(experiment)
    outcome = compile_for(abstract, mesh)
    found = report.report(abstract, outcome, topology, mesh)
    print(report.page(found), end="")
    if args.out is not None:
        report.save(found, outcome.executable, Path(args.out))
