"""Every check that fits a labelled set or a corpus."""

from deepseek_jax.config import DataConfig
from deepseek_jax.data.quality import (
    balance,
    broken,
    columns,
    copies,
    coverage,
    doubts,
    duplicates,
    features,
    leaks,
    outliers,
)
from deepseek_jax.data.quality.all_records import AllRecords, all_records
from deepseek_jax.data.quality.corpus import all_documents
from deepseek_jax.data.quality.finding import Finding
from deepseek_jax.data.records import unseen
from deepseek_jax.data.sets.dataset import Dataset


def check_set(dataset: Dataset) -> tuple[AllRecords, list[Finding]]:
    records = all_records(dataset)
    families = copies.find_copies(records)
    vectors = features.vectors(records)
    findings = [
        leaks.leaks(records, families),
        duplicates.duplicates(records, families),
        broken.broken(records),
        columns.columns(dataset),
        doubts.doubts(records, vectors),
        outliers.outliers(records, vectors),
        balance.class_balance(dataset),
        coverage.coverage(records, vectors),
    ]
    return records, [finding for finding in findings if finding]


def check_corpus(data: DataConfig) -> tuple[AllRecords, list[Finding]]:
    records, unread = all_documents(data, unseen)
    families = copies.find_copies(records)
    findings = [
        leaks.leaks(records, families),
        duplicates.duplicates(records, families),
        broken.broken(records),
        unread,
    ]
    return records, [*findings, coverage.domain_coverage(records)]
