"""Files such as a user has: small data sets, and config files."""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from pydoc_data import topics

import pyarrow
import pyarrow.parquet

from deepseek_jax.config import Experiment, SupervisedExperiment
from deepseek_jax.fields import flatten

TOPICS = [text for _, text in sorted(topics.topics.items())]  # of `help()`: texts that every Python has

CONFIG = """from deepseek_jax.config import default_config


def get_config():
    config = default_config({family!r})
    config.update_from_flattened_dict({changed!r})
    return config
"""


def write_config(path: Path, experiment: Experiment | SupervisedExperiment) -> str:
    """Writes a file whose get_config() returns this experiment, and returns its name."""
    given, defaults = (flatten(dataclasses.asdict(each)) for each in (experiment, type(experiment)()))
    changed = {key: value for key, value in given.items() if value != defaults[key]}
    path.write_text(CONFIG.format(family=experiment.family, changed=changed))
    return str(path)


def write_csv(path: Path, header: str, rows: Iterable[str]) -> str:
    """Writes a table of these lines and returns its name."""
    path.write_text("\n".join([header, *rows]) + "\n")
    return str(path)


def write_jsonl(path: Path, rows: Iterable[Mapping]) -> str:
    """Writes a line for each row and returns the file's name."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def write_parquet(path: Path, rows: Mapping | pyarrow.Table, features: Mapping | None = None) -> str:
    """Writes columns and returns the file's name; `features` as Hugging Face's datasets keeps them beside its own."""
    table = rows if isinstance(rows, pyarrow.Table) else pyarrow.table(dict(rows))
    if features:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pyarrow.parquet.write_table(table, path, row_group_size=100)
    return str(path)


def write_texts(path: Path, texts: Iterable[str]) -> str:
    """Writes a corpus of these documents and returns its name."""
    return write_jsonl(path, ({"text": text} for text in texts))


def people(count: int, *, kinds: str = "ab", older: int = 0) -> list[str]:
    """Rows of a table `age,size,kind`: two numbers and a class; `older` years are added to each age."""
    return [f"{number + older},{number % 7},{kinds[number % len(kinds)]}" for number in range(count)]
