"""deepseek-jax predict."""

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
    from deepseek_jax.train import known_set

    if record.family(args.workdir) == "language_model":  # what is wrong is said before the seconds that jax takes
        raise UserError(f"{args.workdir} holds a language model; its answers come from `generate`.")
    known = known_set.read(Path(args.workdir))
    columns = record.read(args.workdir).dataset.columns
    places, inputs = READERS[known.model.input](args.inputs, known, columns)
    runtime.prepare()
    from deepseek_jax.infer.predict import load_predictor

    for place, found in zip(places, load_predictor(args.workdir, args.checkpoint).predict(inputs), strict=True):
        print(json.dumps(place | found, ensure_ascii=False))


TABLES = (".csv", ".jsonl")

# Each reader gives where inputs come from, as an answer is to say it, and the inputs.


def _images(paths, known, columns):
    import numpy as np

    from deepseek_jax.data.sets.config import DatasetConfig, ImagesConfig
    from deepseek_jax.data.sets.images import decode

    for path in paths:
        if _suffix(path) in TABLES:
            raise UserError(f"{path} is a table, and this network answers for pictures; give their files themselves.")
    sizes = {name: getattr(known.model, name) for name in ("height", "width", "channels")}
    config = DatasetConfig(images=ImagesConfig(**sizes))
    images = np.stack([decode(_bytes(path), path, config) for path in paths]).astype(np.float32) / 255
    return [{"file": path} for path in paths], images


def _texts(paths, known, columns):
    """Of a table the texts of its column, of any other file its lines."""

    def read(path):
        return _column(path, columns) if _suffix(path) in TABLES else numbered_lines(_text(path))

    places, texts = _in_order(paths, read)
    if not texts:
        raise UserError("there is no text to answer for; write one a line.")
    return places, texts


def _column(path, columns):
    from deepseek_jax.data.sets.rows import text

    if not columns.text:
        raise UserError(
            f"{path} is a table, and dataset.columns.text of the training names no column of texts; give files with a "
            "text a line, that end otherwise than in .csv or .jsonl."
        )
    return _records(path, [columns.text], lambda *place: text(*place, columns.text))


def _tables(paths, known, columns):
    from deepseek_jax.data.sets.rows import number

    def numbers(*place):
        return [number(*place, name) for name in known.names]

    places, rows = _in_order(paths, lambda path: _records(path, known.names, numbers))
    if not rows:
        raise UserError("there is no row to answer for.")
    return places, rows


def _series(paths, known, columns):
    """Of each table the last window; its place is that of the last row."""
    import numpy as np

    from deepseek_jax.data.sets.faults import Faults
    from deepseek_jax.data.sets.own_series import values_of

    (column,), length = known.names, known.model.length
    places, windows = [], []
    for path in paths:
        faults = Faults(path)
        values = values_of(*_lines(path), column, faults)
        faults.check()
        if len(values) < length:
            raise UserError(f"{path} has {len(values)} values of {column}; this network forecasts from {length}.")
        places.append({"file": path, "line": max(values)})
        windows.append(list(values.values())[-length:])
    return places, np.array(windows)[..., None]


READERS = {"image": _images, "text": _texts, "table": _tables, "series": _series}


def _records(path, needed, read) -> dict:
    """read(faults, line, row) of the records of a .csv or .jsonl, by line; UserError says all that is wrong."""
    from deepseek_jax.data.sets.faults import Faults
    from deepseek_jax.data.sets.rows import rows_of

    faults = Faults(path)
    rows = rows_of(*_lines(path), list(needed), faults)
    found = {line: read(faults, line, row) for line, row in rows}
    faults.check()
    return found


def _lines(path) -> tuple[io.StringIO, str]:
    """What `rows_of` takes of a file: its lines, and how they are to be read."""
    return io.StringIO(_text(path), newline=""), ".jsonl" if _suffix(path) == ".jsonl" else ".csv"


def _in_order(paths, read) -> tuple[list[dict], list]:
    """(places, inputs) of all that `read` gives by line of each path."""
    found = [(path, line, each) for path in paths for line, each in read(path).items()]
    return [{"file": path, "line": line} for path, line, _ in found], [each for *_, each in found]


def _suffix(path: str) -> str:
    return Path(path).suffix.lower()


def _text(path: str) -> str:
    data = sys.stdin.buffer.read() if path == "-" else _bytes(path)
    if b"\0" in data:
        raise UserError(f"{path} is no text in UTF-8, as it holds zero bytes; give texts or a table, saved as UTF-8.")
    try:
        return data.decode("utf-8-sig")  # spreadsheets put a mark before the first name
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path} is not UTF-8 in line {line}; save it in that encoding.") from None


def _bytes(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except IsADirectoryError:
        raise UserError(f"{path} is a directory; give the files in it, such as {Path(path) / '*'}.") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}.") from None
