"""Runs all checks that apply to a labelled set or a corpus."""

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
from deepseek_jax.data.sets.dataset import Dataset
from deepseek_jax.reporting import Report, no_report


def check_set(dataset: Dataset, report: Report = no_report) -> tuple[AllRecords, list[Finding]]:
    """Runs the checks of a set; `report` receives the progress of the slow ones."""
    records = all_records(dataset)
    report("comparing records", 0, None)
    families = copies.find_copies(records, report)
    findings = [
        leaks.leaks(records, families),
        duplicates.duplicates(records, families),
        broken.broken(records),
        columns.columns(dataset),
    ]
    report("describing records", 0, None)
    vectors = features.vectors(records)
    report("looking for label doubts", 0, None)
    findings.append(doubts.doubts(records, vectors))
    report("looking for outliers", 0, None)
    findings.append(outliers.outliers(records, vectors))
    findings.append(balance.class_balance(dataset))
    report("looking at coverage", 0, None)
    findings.append(coverage.coverage(records, vectors))
    return records, [finding for finding in findings if finding]


def check_corpus(data: DataConfig, report: Report = no_report) -> tuple[AllRecords, list[Finding]]:
    records, sample, unread = all_documents(data, report)
    report("comparing records", 0, None)
    families = copies.find_copies(records, report)
    findings = [
        sample,
        leaks.leaks(records, families),
        duplicates.duplicates(records, families),
        broken.broken(records),
        unread,
        coverage.domain_coverage(records),
    ]
    return records, [finding for finding in findings if finding]
