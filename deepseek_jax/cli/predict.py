"""deepseek-jax predict."""

import csv
import json
import math
import sys
from pathlib import Path

from deepseek_jax.cli import options, runtime
from deepseek_jax.cli.options import lines, named
from deepseek_jax.errors import UserError


def add_to(verbs):
    parser = options.add_verb(
        verbs,
        "predict",
        run,
        "answer for new inputs with a trained hybrid network",
        """\
Inputs are scaled and tokenized as those of the training.  What is read depends on what the network was trained on:
images: image files; text: files of texts, one a line, or - for standard input; tables: .csv files with the columns of
the training.  Answers are JSON, one a line.

examples:
  deepseek-jax predict --workdir runs/mnist seven.png
  echo "Creates a bucket." | deepseek-jax predict --workdir runs/text -""",
    )
    options.add_run(parser)
    parser.add_argument(
        "inputs", type=named, nargs="+", metavar="FILE", help="image files, files of texts, or .csv files"
    )


def run(args):
    from deepseek_jax.train import known_set

    known = known_set.read(Path(args.workdir))  # what is wrong is said before the seconds that jax takes
    inputs = READERS.get(known.model.input, _no_series)(args.inputs, known)
    runtime.prepare()
    from deepseek_jax.infer.predict import load_predictor

    for found in load_predictor(args.workdir, args.checkpoint).predict(inputs):
        print(json.dumps(found, ensure_ascii=False))


def _images(paths, known):
    import numpy as np

    from deepseek_jax.data.sets.config import DatasetConfig, ImagesConfig
    from deepseek_jax.data.sets.images import decode

    sizes = {name: getattr(known.model, name) for name in ("height", "width", "channels")}
    config = DatasetConfig(images=ImagesConfig(**sizes))
    return np.stack([decode(_bytes(path), path, config) for path in paths]).astype(np.float32) / 255


def _texts(paths, known):
    texts = lines("\n".join(sys.stdin.read() if path == "-" else _text(path) for path in paths))
    if not texts:
        raise UserError("there is no text to answer for; write one a line.")
    return texts


def _tables(paths, known):
    rows = []
    for path in paths:
        for number, row in enumerate(csv.DictReader(_text(path).splitlines()), start=2):
            try:
                rows.append([_finite(row[name]) for name in known.names])
            except KeyError as missing:
                raise UserError(f"{path} has no column {missing}; it needs {', '.join(known.names)}.") from None
            except (TypeError, ValueError):
                raise UserError(f"{path} line {number} has an entry that is no number; mend it.") from None
    if not rows:
        raise UserError("there is no row to answer for.")
    return rows


def _no_series(paths, known):
    raise UserError("predict reads no series from files; use deepseek_jax.infer.predict.load_predictor in a program.")


READERS = {"image": _images, "text": _texts, "table": _tables}


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError
    return number


def _text(path: str) -> str:
    return _bytes(path).decode("utf-8-sig", errors="replace")  # spreadsheets put a mark before the first name


def _bytes(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}.") from None
