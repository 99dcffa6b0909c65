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
        "score a trained or released model on data that it was not trained on",
        """\
Language models are scored in bits per byte of text, so that models with different tokenizers, gzip and xz can be
compared.  The text is what the run held out, or with --source the held-out part of a corpus, or all of a file or
directory.  A hybrid network is scored on the test split of its data set, next to a simple baseline for such data.

A released model (config.json, safetensors or pytorch_model.bin files, tokenizer.json) needs --source.  Its text is cut
into rows of 512 tokens by default; longer rows give the model more context, so that bits per byte fall.

examples:
  deepseek-jax eval --workdir runs/v3_tiny
  deepseek-jax eval --workdir runs/v3_tiny --checkpoint 300 --source code
  deepseek-jax eval --workdir runs/v3_tiny --source my_texts/
  deepseek-jax eval --workdir DeepSeek-V2-Lite --source my_texts/ --sequence-length 4096 --batch-size 1""",
    )
    options.add_run(parser, options.RUN_OR_RELEASE)
    parser.add_argument(
        "--source",
        type=named,
        metavar="NAME",
        help="other text: a corpus, a file (.txt, .jsonl, .csv, .parquet) or a directory",
    )
    parser.add_argument(
        "--sequence-length", type=number(int, 2), metavar="N", help="tokens per row; default: as in training, or 512"
    )
    parser.add_argument(
        "--batch-size",
        type=number(int, 1),
        metavar="N",
        help="how many sequences to score at a time; rounded up to a multiple of the devices",
    )


def run(args):
    from deepseek_jax import record

    family = record.family(args.workdir)  # errors are raised before jax is imported, which takes seconds
    for name in ("source", "sequence_length") if family == "supervised" else ():
        if getattr(args, name) is not None:
            raise UserError(
                f"--{name.replace('_', '-')} is for language models; a hybrid network is scored on the test split of "
                "its own data set."
            )
    if record.kind(args.workdir) != "run" and args.source is None:
        raise UserError(f"{args.workdir} is a released checkpoint, without text of its own; name some with --source.")
    from deepseek_jax.cli import evaluate_supervised
    from deepseek_jax.parallel import processes

    with processes.together():
        (evaluate_supervised.run if family == "supervised" else _language_model)(args)


def _language_model(args):
    from deepseek_jax.data.compressors import bits_per_byte
    from deepseek_jax.infer.prompts import beyond
    from deepseek_jax.parallel import processes
    from deepseek_jax.parallel.mesh import mesh_of_scored
    from deepseek_jax.train import setup
    from deepseek_jax.train.checkpoints import any_checkpoint
    from deepseek_jax.train.reporting import bars

    console = runtime.console(quiet=not processes.is_leader())
    trained = any_checkpoint.read(args.workdir, args.checkpoint, mesh_of_scored, dtype=None)
    scoring = setup.prepare(_scoring_experiment(trained.experiment, args), console)
    corpus, scores = scoring.task.corpus, scoring.scores(trained.params, trained.buffers, "final")
    if not scores:
        raise UserError(f"no text of {scoring.experiment.data.source} is held out to score; set data.held_out above 0.")
    which = f"step {trained.step} of {args.workdir}" if trained.step else args.workdir
    data = scoring.experiment.data
    with bars.stages(console) as report:
        compressed = bits_per_byte(corpus, report) if processes.is_leader() else {}
        processes.barrier()  # compressing may take longer than the other processes' timeout
    what = f"{which} on {data.source} in rows of {data.sequence_length} tokens, bits per byte:"
    console.print(what)
    warning = beyond([data.sequence_length], scoring.experiment.model.max_position_embeddings, "a row")
    if warning and processes.is_leader():
        runtime.warn(warning)
    console.print(_table(scores, compressed, corpus.held_out_bytes))


def _scoring_experiment(experiment, args):
    """The model's experiment, adapted to the local devices, with its tokenizer and the data that `args` ask for."""
    from deepseek_jax.data import tokenizer
    from deepseek_jax.data.corpora import CORPORA
    from deepseek_jax.train.scoring import scoring_experiment

    beside = tokenizer.of_model(args.workdir, experiment.model.vocab_size)
    length = args.sequence_length or experiment.data.sequence_length
    data = dataclasses.replace(experiment.data, tokenizer=str(beside.path), sequence_length=length)
    if args.source is not None:
        own = args.source not in (*CORPORA, "mix") and Path(args.source).expanduser().exists()
        whole = 1.0 if own else data.held_out
        data = dataclasses.replace(data, source=args.source, held_out=whole)
    return scoring_experiment(dataclasses.replace(experiment, data=data), args.batch_size or 0)


def _table(scores: dict, compressors: dict[str, dict], sizes: dict[str, int]):
    """A table with a row per domain and one for the total: bits per byte of the model and of each compressor."""
    table = runtime.table("", "held-out text", "bytes", "model", *compressors)
    rows = {domain: scores[f"bits_per_byte/{domain}"] for domain in sizes if f"bits_per_byte/{domain}" in scores}
    for name, score in (rows | {"total": scores["bits_per_byte"]}).items():
        size = sizes.get(name, sum(sizes.values()))
        theirs = (f"{by_name[name]:.4f}" for by_name in compressors.values())
        table.add_row(name, f"{size:,}", f"{score:.4f}", *theirs)
    return table
