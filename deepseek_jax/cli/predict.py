"""deepseek-jax predict."""

import csv
import io
import json
import sys
from pathlib import Path

from deepseek_jax.cli import options, runtime
from deepseek_jax.cli.options import named, numbered_lines
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
the training.  Answers are JSON, one a line, each with its "file" and, of texts and tables, the "line" of it that it
answers; blank lines have no answer.

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
    places, inputs = READERS.get(known.model.input, _no_series)(args.inputs, known)
    runtime.prepare()
    from deepseek_jax.infer.predict import load_predictor

    for place, found in zip(places, load_predictor(args.workdir, args.checkpoint).predict(inputs), strict=True):
        print(json.dumps(place | found, ensure_ascii=False))


# Each reader gives where inputs come from, as an answer is to say it, and the inputs.


def _images(paths, known):
    import numpy as np

    from deepseek_jax.data.sets.config import DatasetConfig, ImagesConfig
    from deepseek_jax.data.sets.images import decode

    sizes = {name: getattr(known.model, name) for name in ("height", "width", "channels")}
    config = DatasetConfig(images=ImagesConfig(**sizes))
    images = np.stack([decode(_bytes(path), path, config) for path in paths]).astype(np.float32) / 255
    return [{"file": path} for path in paths], images


def _texts(paths, known):
    texts = [(path, number, text) for path in paths for number, text in numbered_lines(_text(path)).items()]
    if not texts:
        raise UserError("there is no text to answer for; write one a line.")
    return [{"file": path, "line": number} for path, number, _ in texts], [text for *_, text in texts]


def _tables(paths, known):
    places, rows = [], []
    for path in paths:
        reader = csv.DictReader(io.StringIO(_text(path), newline=""))
        try:
            for row in reader:
                rows.append([_finite(row[name]) for name in known.names])
                places.append({"file": path, "line": reader.line_num})
        except KeyError as missing:
            raise UserError(f"{path} has no column {missing}; it needs {', '.join(known.names)}.") from None
        except (TypeError, ValueError):
            raise UserError(f"{path} line {reader.line_num} has an entry that is no number; mend it.") from None
        except csv.Error as error:
            raise UserError(f"{path} line {reader.line_num}: {error}.") from None
    if not rows:
        raise UserError("there is no row to answer for.")
    return places, rows


def _no_series(paths, known):
    raise UserError("predict reads no series from files; use deepseek_jax.infer.predict.load_predictor in a program.")


READERS = {"image": _images, "text": _texts, "table": _tables}


def _finite(text: str) -> float:
    from deepseek_jax.data.sets.files import LARGEST

    if not abs(number := float(text)) <= LARGEST:
        raise ValueError
    return number


def _text(path: str) -> str:
    data = sys.stdin.buffer.read() if path == "-" else _bytes(path)
    return data.decode("utf-8-sig", errors="replace")  # spreadsheets put a mark before the first name


def _bytes(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}.") from None
