"""Opens a set by name: reads, splits and tokenizes it, and fits its standardisation."""

import dataclasses
import pathlib
from collections.abc import Callable

import numpy as np

from deepseek_jax.data.sets import files, images, prepared, rows, scenes, series, services, splitting, tables
from deepseek_jax.data.sets.config import DatasetConfig
from deepseek_jax.data.sets.dataset import SPLITS, Dataset, Records
from deepseek_jax.data.sets.formats import NAMED, format_of
from deepseek_jax.data.sets.scaling import Scaling, moments
from deepseek_jax.data.sets.source import Source
from deepseek_jax.data.sets.vocabulary import encode, train_tokenizer
from deepseek_jax.errors import UserError

SOURCES: dict[str, tuple[str, Callable[[DatasetConfig], Source]]] = {  # what the records of each set are; its reader
    "digits": ("image", images.digits),
    "mnist5k": ("image", images.mnist5k),
    "fashion": ("image", images.fashion),
    "services": ("text", services.services),
    "scenes": ("image", scenes.scenes),
    "diabetes": ("table", tables.diabetes),
    "co2": ("series", series.co2),
    "temperatures": ("series", series.temperatures),
}


def input_of(config: DatasetConfig) -> str | None:
    """What the records of a set are, without reading it: image, text, table or series; None if that takes reading."""
    return SOURCES[config.name][0] if config.name in SOURCES else next(iter(config.columns.inputs), None)


def open_set(config: DatasetConfig) -> Dataset:
    """Opens the set `config.name`; slow preparation is cached.  UserError if it cannot be read.

    The same config results in the same records in the same splits on every machine.
    """
    source = _read(config)
    splits = _split(source, config)
    if config.exclude:
        listed = _listed(config.exclude, source)
        splits["train"] = _where(splits["train"], ~np.isin(splits["train"]["ids"], listed))
    tokenizer = None
    if source.input == "text" and len(splits["train"]["ids"]):
        tokenizer = train_tokenizer(splits["train"]["inputs"].tolist(), config)
        splits = {name: _tokenized(records, tokenizer, config.length) for name, records in splits.items()}
    return Dataset(
        name=source.name,
        kind=source.kind,
        input=source.input,
        splits=splits,
        class_names=source.class_names,
        names=source.names,
        target_names=source.target_names,
        scaling=_fit(source, splits["train"]) if config.standardise else Scaling(),
        balance=config.balance,
        tokenizer=tokenizer,
        season=source.season,
        notes=source.notes + _empty_split_notes(splits, config),
    )


def _read(config: DatasetConfig) -> Source:
    if config.name in SOURCES or config.name.startswith("tfds:"):
        _check_no_columns(config)
        read = SOURCES[config.name][1] if config.name in SOURCES else prepared.read
        return read(config)
    path = pathlib.Path(config.name).expanduser()
    if format_of(path):
        return files.read(path, config)
    if path.is_dir():
        raise UserError(
            f"dataset.name: {config.name} is a directory without Parquet files; name {NAMED} with a line for each "
            "record, of pictures the file's name and its label, as in dataset.columns.image=file and "
            "dataset.columns.label=kind."
        )
    raise UserError(
        f"dataset.name: {config.name!r} is neither a set ({', '.join(SOURCES)}, tfds:NAME) nor {NAMED} file."
    )


def _check_no_columns(config: DatasetConfig):
    given = [field.name for field in dataclasses.fields(config.columns) if getattr(config.columns, field.name)]
    if given:
        raise UserError(
            f"dataset.columns.{given[0]} is for {NAMED}, but dataset.name is {config.name}; name your file."
        )


def _split(source: Source, config: DatasetConfig) -> dict[str, Records]:
    records = source.records
    shares = {"val": config.val, "test": config.test, "seed": config.seed}
    keys, origins = splitting.content_keys(records["inputs"]), source.origins
    if source.input == "table" and 2 * len(set(keys)) < len(keys):  # of categories, say: equal rows need not be copies
        keys = origins = splitting.made_unique(origins or keys)
    if source.kind == "boxes":
        strata = splitting.rarest(records["box_labels"], len(source.class_names))
    else:
        strata = records.get("labels", np.zeros(len(keys), np.int32))
    split_of = splitting.by_content(keys, strata, **shares, origins=origins, given=source.given)
    return {name: _where(records, split_of == name) for name in SPLITS}


def _empty_split_notes(splits: dict[str, Records], config: DatasetConfig) -> tuple[str, ...]:
    """A note for each split that has a share above 0 but no record."""
    shares = {"val": config.val, "test": config.test}
    return tuple(
        f"dataset.{name} is {share}, which comes to no record of {config.name}: the split {name} is empty."
        for name, share in shares.items()
        if share and not len(splits[name]["ids"])
    )


def _where(records: Records, mask: np.ndarray) -> Records:
    return {column: values[mask] for column, values in records.items()}


def _listed(path: str, source: Source) -> list[int]:
    """The ids in a filter list: one per line, # begins a comment.  UserError for other content and unknown ids."""
    with rows.reading("dataset.exclude", path):
        data = pathlib.Path(path).expanduser().read_bytes()
    listed = []
    for number, line in enumerate(data.decode("utf-8-sig", "replace").splitlines(), 1):
        entry = line.split("#")[0].strip()
        try:
            listed += [int(entry)] if entry else []
        except ValueError:
            raise UserError(f"dataset.exclude: {path} must have one id per line; line {number} has none.") from None
    if unknown := set(listed) - set(source.records["ids"].tolist()):
        raise UserError(f"dataset.exclude: {path} lists record {min(unknown)}, which {source.name} does not have.")
    return listed


def _tokenized(records: Records, tokenizer, length: int) -> Records:
    ids, lengths = encode(records["inputs"], tokenizer, length)
    return records | {"inputs": ids, "lengths": lengths, "texts": records["inputs"]}


def _fit(source: Source, train: Records) -> Scaling:
    """Fits the scaling on the training records, per channel (images, series) or column; none for text inputs."""
    if not len(train["ids"]):
        return Scaling()
    inputs, targets = ((), ()), ((), ())
    if source.input == "image" and train["inputs"].dtype == np.uint8:
        inputs = moments(train["inputs"], unit=255)
    elif source.input != "text":
        inputs = moments(train["inputs"])
    if source.kind == "numbers":
        targets = moments(train["targets"])
    return Scaling(*inputs, *targets)
