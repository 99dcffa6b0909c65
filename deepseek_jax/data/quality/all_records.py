"""All records of a set, or all documents of a corpus, concatenated over splits for the checks.

N records of all splits together; a record's place is its row here
"""

import dataclasses

import numpy as np

from deepseek_jax.data.sets.dataset import Dataset
from deepseek_jax.errors import UserError

FEWEST = 20  # records; with fewer, neighbours and shares mean nothing


@dataclasses.dataclass(frozen=True)
class AllRecords:
    """`input`: image, series, text or table.  ids [N]: ids of a set's records, or names of a corpus's documents.

    inputs [N ...]: as in Dataset, but texts as strings; splits [N]: split names; "train" is the training split.
    groups [N]: a record's class, or its domain in a corpus; None if a set's targets are numbers or boxes.
    tokens int32 [N 1 + S]: for a set of texts, all that a model sees of each: its length and token ids; else None.
    """

    name: str
    input: str
    ids: np.ndarray
    splits: np.ndarray
    inputs: np.ndarray
    groups: np.ndarray | None
    group_names: tuple[str, ...]
    tokens: np.ndarray | None = None
    corpus: bool = False  # documents of a language model; filter lists do not apply to them
    notes: tuple[str, ...] = ()  # remarks for the user on how they were read, one sentence each

    def __post_init__(self):
        if len(self.ids) < FEWEST:
            raise UserError(f"{self.name} has {len(self.ids)} records; a check needs at least {FEWEST}.")

    @property
    def train(self) -> np.ndarray:
        """bool [N]: the mask of training records."""
        return self.splits == "train"

    def group_of(self, place: int) -> str:
        return "" if self.groups is None else self.group_names[self.groups[place]]

    def said(self, place: int) -> str:
        """A record's id, split and group, for a caption."""
        return " ".join(filter(None, (f"{self.ids[place]}", self.splits[place], self.group_of(place))))


def all_records(dataset: Dataset) -> AllRecords:
    splits = dataset.splits.values()
    of_text = dataset.input == "text"
    column = "texts" if of_text else "inputs"
    seen = [np.column_stack([records["lengths"], records["inputs"]]) for records in splits] if of_text else None
    return AllRecords(
        name=dataset.name,
        input=dataset.input,
        ids=np.concatenate([records["ids"] for records in splits]),
        splits=np.repeat(list(dataset.splits), [len(records["ids"]) for records in splits]),
        inputs=np.concatenate([records[column] for records in splits]),
        groups=np.concatenate([records["labels"] for records in splits]) if dataset.kind == "classes" else None,
        group_names=dataset.class_names,
        tokens=np.concatenate(seen) if of_text else None,
        notes=dataset.notes,
    )
