"""deepseek-jax predict."""

import json
from pathlib import Path

from deepseek_jax.cli import options, runtime
from deepseek_jax.cli.options import named
from deepseek_jax.errors import UserError


def add_to(verbs):
    parser = options.add_verb(
        verbs,
        "predict",
        run,
        "answer for new inputs with a trained hybrid network",
        """\
Inputs are scaled and tokenized as those of the training.  What is read depends on what the network was trained on:
images: image files; text: files of texts, one a line, - for standard input, or .csv and .jsonl files with the column
of the training's texts; tables: .csv or .jsonl files with the columns of the training; series: .csv or .jsonl files
with the column of the training, whose last row the forecast follows.  Answers are JSON, one a line, each with its
"file" and, of all but images, the "line" of it that it answers; blank lines have no answer.

examples:
  deepseek-jax predict --workdir runs/mnist seven.png
  echo "Creates a bucket." | deepseek-jax predict --workdir runs/text -
  deepseek-jax predict --workdir runs/mail new_mail.csv""",
    )
    options.add_run(parser)
    parser.add_argument(
        "inputs", type=named, nargs="+", metavar="FILE", help="image files, files of texts, .csv or .jsonl files"
    )


def run(args):
    from deepseek_jax import record
    from deepseek_jax.infer import inputs
    from deepseek_jax.train import known_set

    if record.family(args.workdir) == "language_model":  # what is wrong is said before the seconds that jax takes
        raise UserError(f"{args.workdir} holds a language model; its answers come from `generate`.")
    known = known_set.read(Path(args.workdir))
    columns = record.read(args.workdir).dataset.columns
    places, given = inputs.read(args.inputs, known, columns)
    runtime.prepare()
    from deepseek_jax.infer.predict import load_predictor

    for place, found in zip(places, load_predictor(args.workdir, args.checkpoint).predict(given), strict=True):
        print(json.dumps(place | found, ensure_ascii=False))
