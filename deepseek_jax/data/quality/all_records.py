"""All records of a set, or all documents of a corpus, one after another, as the checks look at them.

N records of all splits together; a record's place is its row here
"""

import dataclasses

import numpy as np

from deepseek_jax.data.sets.dataset import Dataset
from deepseek_jax.errors import UserError

FEWEST = 20  # records; of fewer, no neighbour and no share says anything


@dataclasses.dataclass(frozen=True)
class AllRecords:
    """`input`: image, series, text or table.  ids [N]: numbers of a set's records, names of a corpus's documents.

    inputs [N ...]: as Dataset has them, texts as objects; splits [N]: names, the one that is learned from is "train".
    groups [N]: a record's class, or its domain in a corpus; None where a set asks for numbers or boxes.
    tokens int32 [N 1 + S]: of texts of a set, all that a model sees: their length and their ids; else None.
    """

    name: str
    input: str
    ids: np.ndarray
    splits: np.ndarray
    inputs: np.ndarray
    groups: np.ndarray | None
    group_names: tuple[str, ...]
    tokens: np.ndarray | None = None
    corpus: bool = False  # documents of a language model, which no filter list leaves out
    notes: tuple[str, ...] = ()  # what a person should know of how they were read, a sentence each

    def __post_init__(self):
        if len(self.ids) < FEWEST:
            raise UserError(f"{self.name} has {len(self.ids)} records; a check needs {FEWEST} to tell anything.")

    @property
    def train(self) -> np.ndarray:
        """bool [N]"""
        return self.splits == "train"

    def group_of(self, place: int) -> str:
        return "" if self.groups is None else self.group_names[self.groups[place]]

    def said(self, place: int) -> str:
        """Which record it is, for a caption."""
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
