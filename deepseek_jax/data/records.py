"""Datasets stored as array_record by tensorflow-datasets, without TensorFlow and without its own output."""

import pathlib
from collections.abc import Iterator, Sequence

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.core.dataset_builder import FileReaderBuilder

from deepseek_jax.reporting import Report, no_report

BATCH = 512  # most records looked up at once ...
BATCH_BYTES = 16 << 20  # ... and about the most bytes, as they are in memory together
SPLITS = ("train", "held_out")
SHARD_BYTES = 1 << 30  # of records per file: the most that tensorflow-datasets puts in one


class LocalInfo(tfds.core.DatasetInfo):
    """Info of a locally made dataset: the library's own class would look up its name in a Google Cloud bucket."""

    def initialize_from_bucket(self):
        """Does nothing, instead of a network request and an empty directory in /tmp."""


class RecordBuilder(FileReaderBuilder, skip_registration=True):
    """A builder that writes array_record in the order of generation, so that records can be looked up by number.

    A record is written as soon as it is generated.  The library's own GeneratorBasedBuilder keeps all records of a
    split for sorting, even without shuffling, and needs TensorFlow for more than 1 GB.
    """

    VERSION = tfds.core.Version("1.0.0")
    HOMEPAGE = LICENSE = None

    def __init__(self, report: Report = no_report, **kwargs):
        self.report = report
        tfds.disable_progress_bar()
        super().__init__(file_format="array_record", **kwargs)

    def features(self) -> dict[str, tfds.features.FeatureConnector]:
        raise NotImplementedError

    def records(self) -> Iterator[tuple[str, dict]]:
        """Yields (one of SPLITS, record); splits may alternate, and a split without a record is not created."""
        raise NotImplementedError

    def _download_and_prepare(self, dl_manager, download_config):
        serializer = tfds.core.ExampleSerializer(self.info.features.get_serialized_info())
        writers = {name: SplitWriter(self._get_filename_template(name)) for name in SPLITS}
        for split, record in self.records():
            writers[split].write(serializer.serialize_example(self.info.features.encode_example(record)))
        self.info.set_splits(tfds.core.SplitDict([writer.close() for writer in writers.values() if writer.lengths]))

    def _info(self):
        return LocalInfo(
            builder=self,
            features=tfds.features.FeaturesDict(self.features()),
            description=type(self).__doc__,
            homepage=self.HOMEPAGE,
            license=self.LICENSE,
            disable_shuffling=True,
        )

    # The library's versions of these two print to stdout whatever the settings; `report` informs the user instead.
    def _log_download_bytes(self):
        pass

    def _log_download_done(self):
        pass


class SplitWriter:
    """Writes one split as array_record files ("shards"); they get their final names once their number is known."""

    def __init__(self, template: tfds.core.ShardedFileTemplate):
        self.template = template
        self.lengths: list[int] = []  # records in each shard
        self.bytes = 0

    def write(self, record: bytes):
        if self.bytes >= SHARD_BYTES * len(self.lengths):
            self._begin_shard()
        self._shard.write(record)
        self.lengths[-1] += 1
        self.bytes += len(record)

    def _begin_shard(self):
        if self.lengths:
            self._shard.close()
        self._shard = ArrayRecordWriter(str(self._path(len(self.lengths))), "group_size:1")
        self.lengths.append(0)

    def _path(self, shard: int) -> pathlib.Path:
        return self.template.data_dir / f"{self.template.split}-{shard}"

    def close(self) -> tfds.core.SplitInfo:
        self._shard.close()
        for shard, path in enumerate(self.template.sharded_filepaths(len(self.lengths))):
            self._path(shard).rename(path)
        return tfds.core.SplitInfo(
            name=self.template.split, shard_lengths=self.lengths, num_bytes=self.bytes, filename_template=self.template
        )


def open_dataset(entry: pathlib.Path) -> tfds.core.DatasetBuilder:
    """Opens the dataset stored in a cache entry, which has exactly one."""
    (info,) = entry.glob("*/*/dataset_info.json")
    return tfds.builder_from_directory(info.parent)


def batched(dataset: tfds.core.DatasetBuilder, split: str, numbers: Sequence[int]) -> Iterator[list[dict]]:
    """Yields lists of the records with these numbers: one lookup of BATCH is 4 times as fast as BATCH lookups."""
    source, info = dataset.as_data_source(split), dataset.info.splits[split]
    batch = min(BATCH, 1 + BATCH_BYTES * info.num_examples // info.num_bytes)
    for start in range(0, len(numbers), batch):
        yield source.__getitems__([int(number) for number in numbers[start : start + batch]])


def batched_texts(dataset: tfds.core.DatasetBuilder, split: str, numbers: Sequence[int]) -> Iterator[list[str]]:
    """As `batched`, but only the texts of the documents."""
    for records in batched(dataset, split, numbers):
        yield [record["text"].decode() for record in records]
