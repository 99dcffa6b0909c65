"""dataset.json of a run directory: what a trained network must know about its labelled set to predict without it."""

import dataclasses
from pathlib import Path

import numpy as np

from deepseek_jax.data.sets.dataset import Dataset
from deepseek_jax.data.sets.scaling import Scaling
from deepseek_jax.errors import UserError
from deepseek_jax.fields import build_section
from deepseek_jax.files import read_json, write_json
from deepseek_jax.models.hybrid.config import HybridConfig

DATASET_FILE = "dataset.json"
NAMED = {"names": "features", "class_names": "classes", "target_names": "targets"}  # -> keys of dataset.columns


@dataclasses.dataclass(frozen=True)
class DatasetRecord:
    """`model` has the sizes that the data decides; `names`: columns of a table or series; `season`: 0 if none."""

    model: HybridConfig
    scaling: Scaling
    names: tuple[str, ...]
    class_names: tuple[str, ...]
    target_names: tuple[str, ...]
    season: int


def check(dataset: Dataset, workdir: Path):
    """UserError if the run was trained with other columns, classes, scaling or tokenizer than those of `dataset`."""
    known = read(workdir)
    differ = [name for name in NAMED if getattr(known, name) != getattr(dataset, name)]
    if not alike(known.scaling, dataset.scaling):
        differ.append("scaling")
    if dataset.tokenizer and dataset.tokenizer.differs_from_that_in(workdir):
        differ.append("tokenizer")
    if differ:
        raise UserError(
            f"{dataset.name} is not what {workdir} was trained on: its {' and '.join(differ)} changed; restore the "
            "earlier data, or train on this in another --workdir."
        )


def alike(one: Scaling, other: Scaling) -> bool:
    """Whether both are equal to within 1e-5 standard deviations: machines differ in the last digits."""
    numbers = [
        [np.array([getattr(each, f"{part}_{what}") for what in ("mean", "deviation")]) for part in ("input", "target")]
        for each in (one, other)
    ]
    return all(a.shape == b.shape and (np.abs(a - b) <= 1e-5 * a[1]).all() for a, b in zip(*numbers))


def write(dataset: Dataset, model: HybridConfig, workdir: Path):
    """Writes dataset.json and, for texts, tokenizer.json into the run directory."""
    about = {name: getattr(dataset, name) for name in ("names", "class_names", "target_names", "season")}
    about |= {"scaling": dataclasses.asdict(dataset.scaling), "model": dataclasses.asdict(model)}
    write_json(workdir / DATASET_FILE, about)
    if dataset.tokenizer:
        dataset.tokenizer.save(workdir)


def replace_model(workdir: Path, model: HybridConfig):
    """Replaces the network's config in dataset.json, after its sizes have changed."""
    about = read_json(workdir / DATASET_FILE) | {"model": dataclasses.asdict(model)}
    write_json(workdir / DATASET_FILE, about)


def read(workdir: Path) -> DatasetRecord:
    """Reads dataset.json; UserError if the run directory has none."""
    if not (workdir / DATASET_FILE).exists():
        raise UserError(f"{workdir} has no {DATASET_FILE}; train a hybrid network there first.")
    about = read_json(workdir / DATASET_FILE)
    return DatasetRecord(
        model=build_section(HybridConfig, about["model"], "model."),
        scaling=Scaling(**{name: tuple(numbers) for name, numbers in about["scaling"].items()}),
        names=tuple(about["names"]),
        class_names=tuple(about["class_names"]),
        target_names=tuple(about["target_names"]),
        season=about["season"],
    )
