"""deepseek-jax predict."""

import json
from pathlib import Path

from deepseek_jax.checking import require_family
from deepseek_jax.cli import options
from deepseek_jax.cli.options import named


def add_to(verbs):
    parser = options.add_verb(
        verbs,
        "predict",
        run,
        "predict classes, numbers, boxes or a forecast for new inputs, with a trained hybrid network",
        """\
Inputs are scaled and tokenized as in training.  Which files are read depends on what the network was trained on:
  images   image files, or tables with the image column of the training data
  text     text files with one text per line (- reads standard input), or tables with the text column of the training
           data
  tables   tables with the columns of the training data
  series   tables with the column of the training data; the forecast follows the last row
Tables are .csv, .jsonl or .parquet files.  All but .parquet may be compressed by gzip, Zstandard or xz.

Predictions are printed as JSON, one per line, each with the "file" and, except for image files, the "line" (of .parquet
the row) that it belongs to.  Blank lines are skipped.

examples:
  deepseek-jax predict --workdir runs/mnist seven.png
  echo "Creates a bucket." | deepseek-jax predict --workdir runs/text -
  deepseek-jax predict --workdir runs/mail new_mail.csv""",
    )
    options.add_run(parser)
    parser.add_argument(
        "inputs",
        type=named,
        nargs="+",
        metavar="FILE",
        help="image files, text files, or .csv, .jsonl or .parquet files",
    )


def run(args):
    from deepseek_jax import record
    from deepseek_jax.predict import inputs
    from deepseek_jax.train.checkpoints import dataset_record

    found = record.family(args.workdir)  # checked before jax is imported, which takes seconds
    require_family("supervised", found, args.workdir, "use `generate` for it")
    known = dataset_record.read(Path(args.workdir))
    columns = record.read(args.workdir).dataset.columns
    places, given = inputs.read(args.inputs, known, columns)
    from deepseek_jax.predict.predict import load_predictor

    for place, found in zip(places, load_predictor(args.workdir, args.checkpoint).predict(given), strict=True):
        print(json.dumps(place | found, ensure_ascii=False))
