"""Batches of a labelled set, by grain: augmented, standardised, balanced; training can be resumed at any batch.

B records per batch  H height  W width  C channels or numbers  S steps  K classes  M boxes per picture
"""

import functools
from collections.abc import Iterator, Sequence

import grain
import numpy as np

from deepseek_jax.data import cache
from deepseek_jax.data.augment import checks
from deepseek_jax.data.augment.config import AugmentConfig
from deepseek_jax.data.augment.draws import Draws
from deepseek_jax.data.augment.image import augment_images
from deepseek_jax.data.augment.mixing import mix
from deepseek_jax.data.augment.text import augment_texts, thesaurus_of
from deepseek_jax.data.batches import Batch, TrainBatches, read_ahead
from deepseek_jax.data.packing import ENDLESS
from deepseek_jax.data.sets.balance import class_weights, epoch_order, partners
from deepseek_jax.data.sets.dataset import Dataset, as_unit
from deepseek_jax.data.sets.vocabulary import encode

# A batch holds inputs (float32 [B H W C], [B S C] or [B C], int32 [B S] for text), lengths int32 [B] for series and
# text; labels float32 [B K] that sum to 1 | targets float32 [B C] | boxes float32 [B M 4] and box_labels int32 [B M];
# weights float32 [B]: a record's weight in loss and scores, 0 for one that only fills up the last batch; in training
# also seed int32 [B], the run's seed repeated: dropout gets it as data, so that it is not compiled into the program.

PREFETCH = 4  # batches prepared ahead
PLAIN = AugmentConfig()  # every augmentation off


def train_batches(
    dataset: Dataset,
    batch_size: int,
    seed: int,
    chosen: Sequence[int] | None = None,
    augment: AugmentConfig = PLAIN,
    start: int = 0,
) -> TrainBatches:
    """Endless batches [batch_size ...] from number `start` on; with `chosen`, only these rows of each.

    state() and restore(state) resume exactly.  A row does not depend on which other rows are read, or by which process.
    UserError if the augmentation does not fit the set.
    """
    checks.check(augment, dataset, seed)
    order, maker = Order(dataset, seed), BatchMaker(dataset, augment, seed)

    def share(number: int) -> Batch:
        batch = maker(_rows(order[number * batch_size : (number + 1) * batch_size], chosen))
        return batch | {"seed": np.full(len(batch["weights"]), seed % 2**31, np.int32)}

    def read(position: int) -> grain.DatasetIterator:
        return read_ahead(grain.MapDataset.range(position, ENDLESS).map(share), workers=0, prefetch=PREFETCH)

    # The setting moby was called auto in earlier versions, whose runs can be resumed.
    settings = repr(augment).replace("thesaurus='moby'", "thesaurus='auto'")
    fingerprint = cache.digest(dataset.fingerprint, settings, maker.thesaurus_name, seed, batch_size)
    return TrainBatches(read, start, fingerprint)


def held_out_batches(
    dataset: Dataset, split: str, batch_size: int, chosen: Sequence[int] | None = None
) -> Iterator[Batch]:
    """Batches [batch_size ...] of every record of `split` once, unaugmented; the last is filled up with weight 0.

    With `chosen`, only these rows of each batch.
    """
    count = len(dataset.splits[split]["ids"])
    for start in range(0, count, batch_size):
        places = _rows(np.arange(start, start + batch_size), chosen)
        # Filled up with the first record: zeros may not be a valid record (a text without a word, for example).
        batch = standardised_batch(raw_batch(dataset, split, np.where(places < count, places, 0)), dataset)
        yield batch | {"weights": (places < count).astype(np.float32)}


def _rows(places: np.ndarray, chosen: Sequence[int] | None) -> np.ndarray:
    return places if chosen is None else places[np.asarray(chosen)]


class Order:
    """The order of endless training: `order[start:stop]` is int64 [B 3], for each position the record, the epoch,
    and how often that epoch has shown the record before."""

    def __init__(self, dataset: Dataset, seed: int):
        train = dataset.splits["train"]
        self._epoch = functools.lru_cache(2)(  # a batch may extend over two epochs
            lambda number: _epoch(len(train["ids"]), train.get("labels"), dataset.balance, seed, number)
        )
        self.places_per_epoch = len(self._epoch(0))

    def __getitem__(self, places: slice) -> np.ndarray:
        epochs, within = np.divmod(np.arange(places.start, places.stop), self.places_per_epoch)
        return np.concatenate([self._epoch(int(number))[within[epochs == number]] for number in np.unique(epochs)])


def _epoch(count: int, labels, balance: str, seed: int, number: int) -> np.ndarray:
    """int64 [E 3]: one epoch of `Order`."""
    order = epoch_order(count, labels, balance, np.random.default_rng((seed, number)))
    by_record = np.argsort(order, kind="stable")
    first = np.searchsorted(order[by_record], order[by_record])
    copies = np.empty_like(order)
    copies[by_record] = np.arange(len(order)) - first
    return np.stack([order, np.full_like(order, number), copies], -1)


class BatchMaker:
    """Makes a training batch from rows [B 3] of `Order`."""

    def __init__(self, dataset: Dataset, augment: AugmentConfig, seed: int):
        self.dataset, self.augment, self.seed = dataset, augment, seed
        # Its name is part of the fingerprint: auto once stood for either, and a run is not resumed with another one.
        self.thesaurus_name, self._thesaurus = thesaurus_of(augment.text)

    def __call__(self, places_B3: np.ndarray) -> Batch:
        index_B, epoch_B, copy_B = places_B3.T
        return standardised_batch(self.augmented(index_B, Draws(self.seed, index_B, epoch_B, copy_B)), self.dataset)

    def augmented(self, index_B: np.ndarray, draws: Draws) -> Batch:
        """A `raw_batch` of the training split, augmented."""
        batch = raw_batch(self.dataset, "train", index_B)
        image, text = self.augment.image, self.augment.text
        if image.active:
            batch = augment_images(batch, image, draws)
        if image.mixes:
            others = raw_batch(self.dataset, "train", self._partners[draws.integers("partner", len(self._partners))])
            batch = mix(batch, augment_images(others, image, draws.again("partner")), image, draws)
        if text.active:
            length = self.dataset.shape()["length"]
            batch["inputs"], batch["lengths"] = encode(self.texts(index_B, draws), self.dataset.tokenizer, length)
        return batch

    def texts(self, index_B: np.ndarray, draws: Draws) -> list[str]:
        """The records' texts, augmented."""
        return augment_texts(self._train["texts"][index_B], self.augment.text, self._thesaurus, draws)

    @functools.cached_property
    def _partners(self) -> np.ndarray:
        """The records that pictures may be mixed with."""
        return partners(len(self._train["ids"]), self._train.get("labels"), self.dataset.balance)

    @property
    def _train(self):
        return self.dataset.splits["train"]


def raw_batch(dataset: Dataset, split: str, index_B: np.ndarray) -> Batch:
    """A batch of records before augmentation: images in [0, 1], labels one-hot, nothing standardised yet."""
    records = dataset.splits[split]
    batch = {name: records[name][index_B] for name in records if name not in ("ids", "texts")}
    batch["weights"] = np.ones(len(index_B), np.float32)
    if dataset.input == "image":
        batch["inputs"] = as_unit(batch["inputs"])
    if dataset.kind == "classes":
        if dataset.balance == "weights" and split == "train":
            batch["weights"] = class_weights(records["labels"], dataset.outputs)[batch["labels"]]
        batch["labels"] = np.eye(dataset.outputs, dtype=np.float32)[batch["labels"]]
    return batch


def standardised_batch(batch: Batch, dataset: Dataset) -> Batch:
    """A batch with inputs and numeric targets standardised, as model and loss expect them."""
    if dataset.input != "text":
        batch = batch | {"inputs": dataset.scaling.inputs(batch["inputs"])}
    if dataset.kind == "numbers":
        batch = batch | {"targets": dataset.scaling.targets(batch["targets"])}
    return batch
