"""Training of the hybrid network on a labelled set, behind the interface that the loop uses (train/task.py).

R records  K classes  N numbers
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import jax
import numpy as np

from deepseek_jax.config import SupervisedExperiment
from deepseek_jax.data.batches import Batch, TrainBatches
from deepseek_jax.data.sets import batches
from deepseek_jax.data.sets.dataset import Dataset
from deepseek_jax.data.sets.registry import open_set
from deepseek_jax.errors import UserError
from deepseek_jax.models.hybrid.config import HEADS, HybridConfig
from deepseek_jax.parallel import processes
from deepseek_jax.reporting import Report
from deepseek_jax.tasks import scores
from deepseek_jax.tasks.config import OF_BOXES, OF_CLASSES, OF_NUMBERS
from deepseek_jax.train.checkpoints import dataset_record
from deepseek_jax.train.optim.schedules import microbatch_size
from deepseek_jax.train.reporting.report import PICTURES
from deepseek_jax.train.reporting.shown import SHOWN
from deepseek_jax.train.state import State, scored_model
from deepseek_jax.train.supervised import baselines
from deepseek_jax.train.supervised.program import supervised_program
from deepseek_jax.train.views import as_trained

SPLIT_OF = {"val": "val", "final": "test"}  # the loop's name -> the set's
OBJECTIVES_OF = {"classes": OF_CLASSES, "numbers": OF_NUMBERS, "boxes": OF_BOXES}


class SupervisedTask:
    """A labelled set and a hybrid network; see Task."""

    shown = SHOWN["supervised"]
    sized_by = "train.batch_size"

    def __init__(self, experiment: SupervisedExperiment, report: Report):
        """Reads the set.  `report` is there for the interface and is not used."""
        self.experiment, self.dataset = experiment, open_set(experiment.dataset)
        self.notes = list(self.dataset.notes)
        self.tokenizer = self.dataset.tokenizer
        _check_objective(experiment.objective.name, self.dataset)
        self.model = sized(experiment.model, self.dataset)
        self.program = as_trained(supervised_program(experiment, self.model), experiment)

    def train_batches(self, size: int, rows: np.ndarray) -> TrainBatches:
        return batches.train_batches(self.dataset, size, self.experiment.train.seed, rows, self.experiment.augment)

    def held_out_batches(self, split: str, limit: int, size: int, rows: np.ndarray) -> Iterator[Batch]:
        """ "val" is the set's split of that name, "final" its test split."""
        return itertools.islice(batches.held_out_batches(self.dataset, SPLIT_OF[split], size, rows), limit or None)

    def bytes_a_record(self) -> tuple[int, int]:
        """Counts nothing between layers, where networks differ too much."""
        one = batches.standardised_batch(batches.raw_batch(self.dataset, "train", np.arange(1)), self.dataset)
        return sum(array.nbytes for array in one.values()), 0

    def size(self, batch: dict) -> int:
        return batch["weights"].size

    def check_new(self):
        if self.model.reads_one_step_of_many:
            raise UserError(
                "model.readout is last, and without recurrence and attention the last of "
                f"{self.model.steps} steps knows nothing of the others; set model.readout to mean or max."
            )
        convolution = self.model.convolution
        if convolution.filters and convolution.kind == "efficientnet_lite0" and self.dataset.scaling.input_mean:
            raise UserError(
                "model.convolution.kind is efficientnet_lite0, which scales pixels itself; set dataset.standardise to "
                "false."
            )
        batch_norms = convolution.has_batch_norms
        if self.model.input == "table" and batch_norms and microbatch_size(self.experiment.train) == 1:
            raise UserError(
                "model.convolution.norm is batch, which of a single record of a table leaves 0; raise "
                "train.microbatch_size (0: all of train.batch_size at once), or choose another norm."
            )

    def row(self, measured: dict, timing: dict) -> dict:
        return {}

    def scores(self, score: Callable, params, buffers, held_out: Iterable[Batch]) -> dict[str, float]:
        """loss, and the scores of tasks/scores.py for the set's kind of answer; mse and mae in the data's units."""
        found = collect(score, params, buffers, held_out)
        return measure(found, self.dataset) if found else {}

    def measured(self) -> tuple[str, ...]:
        there = len(self.dataset.splits["val"]["ids"])
        return ("loss", *scores.NAMES[self.dataset.kind]) if there else ()

    def baselines(self, report: Report) -> dict[str, float]:
        found = baselines.scores(self.dataset) if processes.is_leader() else {}
        processes.barrier()  # fitting may take longer than the others' collectives would wait
        return found

    def check_data_files(self, workdir: Path):
        if (workdir / dataset_record.DATASET_FILE).exists():
            dataset_record.check(self.dataset, workdir)

    def save_data_files(self, workdir: Path):
        dataset_record.write(self.dataset, self.model, workdir)

    def results(self, state: State, workdir: Path, score: Callable, held_out: Iterable[Batch]) -> list[str]:
        """Draws the predictions on the test split into pictures/ of the run directory; returns no texts."""
        found = collect(score, *scored_model(state), held_out)
        if found and processes.is_leader():
            from deepseek_jax.train.supervised import answers  # matplotlib takes a second to import

            answers.draw(found, self.dataset, workdir / PICTURES)
        return []


def sized(model: HybridConfig, dataset: Dataset) -> HybridConfig:
    """The model with what the data decides: its input, its outputs and, if the config's head does not fit, its head.

    UserError if the config sets any of them to a value other than the default and the data's.
    """
    head = model.head if HEADS[model.head] == dataset.kind else dataset.kind
    decided = dataset.shape() | {"input": dataset.input, "head": head, "outputs": dataset.outputs}
    default = HybridConfig()
    for name, value in decided.items():
        given = getattr(model, name)
        if given not in (value, getattr(default, name)):
            raise UserError(f"model.{name} is {given}, but {dataset.name} has {value}; leave it out.")
    return dataclasses.replace(model, **decided)


def _check_objective(name: str, dataset: Dataset):
    fitting = OBJECTIVES_OF[dataset.kind]
    if name not in fitting:
        choices = " or ".join(fitting)
        raise UserError(f"objective.name is {name}, but {dataset.name} asks for {dataset.kind}; choose {choices}.")


def collect(score: Callable, params, buffers, held_out: Iterable[Batch]) -> dict:
    """The results of `score` for all real records (not padding), as arrays [R, ...] on the host; {} without batches."""
    parts = [jax.device_get(score(params, buffers, batch)) for batch in held_out]
    if not parts:
        return {}
    whole = jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
    return jax.tree.map(lambda array: array[whole["weights"] > 0], whole)


def measure(found: dict, dataset: Dataset) -> dict[str, float]:
    """loss (mean over records) and the scores for the set's kind of answer."""
    return {"loss": float(found["loss"].mean())} | scores_of(found, dataset)


def scores_of(found: dict, dataset: Dataset) -> dict[str, float]:
    if dataset.kind == "classes":
        return scores.of_classes(found["answer"], found["labels"].argmax(axis=1))
    if dataset.kind == "numbers":
        undo = dataset.scaling.undo_targets
        return scores.of_numbers(undo(found["answer"]), undo(found["targets"]))
    predictions = list(zip(*found["answer"]))
    there = found["box_labels"] >= 0
    truths = [(boxes[yes], labels[yes]) for boxes, labels, yes in zip(found["boxes"], found["box_labels"], there)]
    return scores.of_boxes(predictions, truths, len(dataset.class_names))
