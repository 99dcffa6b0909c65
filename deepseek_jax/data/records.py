"""What every dataset stored here shares: array_record by tensorflow-datasets, without TensorFlow and in silence."""

import pathlib
from collections.abc import Callable, Iterator, Sequence

import tensorflow_datasets as tfds

BATCH = 512  # records looked up at once
Report = Callable[[str, int, int | None], None]  # what is being done, how much of it is done, of how many if known


def unseen(stage: str, done: int, total: int | None):
    """A Report to nobody."""


class LocalInfo(tfds.core.DatasetInfo):
    """Of a dataset that is made here: the library's own asks a bucket of Google's what is known of its name."""

    def initialize_from_bucket(self):
        """Nothing, instead of a request over the network and an empty directory in /tmp."""


class RecordBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A builder that writes array_record in the order it generates, so that records can be found by number."""

    VERSION = tfds.core.Version("1.0.0")
    HOMEPAGE = LICENSE = None

    def __init__(self, report: Report = unseen, **kwargs):
        self.report = report
        tfds.disable_progress_bar()
        super().__init__(file_format="array_record", **kwargs)

    def features(self) -> dict[str, tfds.features.FeatureConnector]:
        raise NotImplementedError

    def _info(self):
        return LocalInfo(
            builder=self,
            features=tfds.features.FeaturesDict(self.features()),
            description=type(self).__doc__,
            homepage=self.HOMEPAGE,
            license=self.LICENSE,
            disable_shuffling=True,
        )

    # These two would print to stdout whatever the settings; `report` tells the user instead.
    def _log_download_bytes(self):
        pass

    def _log_download_done(self):
        pass


def open_dataset(entry: pathlib.Path) -> tfds.core.DatasetBuilder:
    """The one dataset stored below a cache entry."""
    (info,) = entry.glob("*/*/dataset_info.json")
    return tfds.builder_from_directory(info.parent)


def batched_texts(dataset: tfds.core.DatasetBuilder, split: str, numbers: Sequence[int]) -> Iterator[list[str]]:
    """The texts of the numbered documents, BATCH at a time: one lookup of many is 4 times as fast as many of one."""
    source = dataset.as_data_source(split)
    for start in range(0, len(numbers), BATCH):
        records = source.__getitems__([int(number) for number in numbers[start : start + BATCH]])
        yield [record["text"].decode() for record in records]
