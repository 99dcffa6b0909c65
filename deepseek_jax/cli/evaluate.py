"""deepseek-jax eval."""

import dataclasses
from pathlib import Path

from deepseek_jax.cli import options, runtime
from deepseek_jax.cli.options import named, number
from deepseek_jax.errors import UserError


def add_to(verbs):
    parser = options.add_verb(
        verbs,
        "eval",
        run,
        "score a trained model on what its run held out",
        """\
Scores of language models are bits a byte, so they compare between models with different tokenizers and with gzip and
xz.  The data is what the run held out, or that of --source: the held-out part of a corpus, or all of a file or
directory.  A hybrid network is scored on the test split of its set, beside the plain model for such data.

examples:
  deepseek-jax eval --workdir runs/v3_tiny
  deepseek-jax eval --workdir runs/v3_tiny --checkpoint 300 --source code
  deepseek-jax eval --workdir runs/v3_tiny --source my_texts/""",
    )
    options.add_run(parser)
    parser.add_argument(
        "--source", type=named, metavar="NAME", help="other data: a corpus, a .txt, a .jsonl or a directory"
    )
    parser.add_argument("--batch-size", type=number(int, 1), metavar="N", help="sequences at a time")


def run(args):
    from deepseek_jax import record

    family = record.read(args.workdir).family  # what is wrong is said before the seconds that jax takes
    if family == "supervised" and args.source is not None:
        raise UserError("--source is for language models; a hybrid network is scored on the test split of its own set.")
    runtime.prepare()
    from deepseek_jax.cli import evaluate_supervised
    from deepseek_jax.parallel import processes

    with processes.together():
        (evaluate_supervised.run if family == "supervised" else _language_model)(args)


def _language_model(args):
    from rich.console import Console

    from deepseek_jax.data.baseline import bits_per_byte
    from deepseek_jax.parallel import processes
    from deepseek_jax.train import setup
    from deepseek_jax.train.evaluate import evaluate
    from deepseek_jax.train.restore import restore_model
    from deepseek_jax.train.step import compile_score

    console = Console(quiet=not processes.leads())
    trained = restore_model(args.workdir, args.checkpoint)
    scoring = setup.prepare(_scoring_experiment(trained.experiment, args), console)
    corpus, batches = scoring.task.corpus, scoring.held_out_batches("final")
    score = processes.compiled_by_all(compile_score(scoring.program, scoring.mesh))
    scores = evaluate(score, trained.params, trained.buffers, batches, corpus)
    if not scores:
        raise UserError(f"{scoring.experiment.data.source} holds out no text to score; set data.held_out above 0.")
    what = f"step {trained.step} of {args.workdir} on {scoring.experiment.data.source}, bits a byte:"
    console.print(what, markup=False, highlight=False, soft_wrap=True)
    console.print(_table(scores, bits_per_byte(corpus), corpus.held_out_bytes))


def _scoring_experiment(experiment, args):
    """The run's experiment on the devices that are here, with the run's tokenizer and the data that is asked for."""
    from deepseek_jax.config import MeshConfig
    from deepseek_jax.data.corpora import CORPORA
    from deepseek_jax.train.views import plain

    data = dataclasses.replace(experiment.data, tokenizer=str(Path(args.workdir) / "tokenizer.json"))
    if args.source is not None:
        own = args.source not in (*CORPORA, "mix") and Path(args.source).exists()
        whole = 1.0 if own else data.held_out
        data = dataclasses.replace(data, source=args.source, held_out=whole)
    batch = dataclasses.replace(experiment.eval, batch_size=args.batch_size or experiment.eval.batch_size)
    return dataclasses.replace(plain(experiment), data=data, eval=batch, mesh=MeshConfig())


def _table(scores: dict, compressors: dict[str, dict], sizes: dict[str, int]):
    """A row a domain and one for all of it: the model's bits a byte beside each compressor's on the same bytes."""
    from rich.table import Table

    table = Table()
    for heading in ("held-out text", "bytes", "model", *compressors):
        table.add_column(heading, justify="left" if heading == "held-out text" else "right")
    rows = {domain: scores[f"bits_per_byte/{domain}"] for domain in sizes if f"bits_per_byte/{domain}" in scores}
    for name, score in (rows | {"total": scores["bits_per_byte"]}).items():
        size = sizes.get(name, sum(sizes.values()))
        rivals = (f"{by_name[name]:.4f}" for by_name in compressors.values())
        table.add_row(name, f"{size:,}", f"{score:.4f}", *rivals)
    return table
