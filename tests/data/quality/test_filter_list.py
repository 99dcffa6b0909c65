"""The filter list: which records are excluded from training, and which are only suggested to a person."""

import numpy as np
import pytest

from deepseek_jax.data.quality import copies, duplicates, filter_list, leaks
from deepseek_jax.data.quality.all_records import AllRecords
from deepseek_jax.data.quality.finding import Finding


@pytest.mark.parametrize("end", ["\n", "\r\n", "\u2028"])
def test_a_reason_with_line_breaks_stays_in_its_line(tmp_path, end):
    columns = {"ids": np.arange(20), "splits": np.full(20, "train"), "inputs": np.zeros((20, 1)), "groups": None}
    records = AllRecords("set", "table", group_names=(), **columns)
    found = [
        Finding("Sure", "", doubtful={3: f"labelled red{end}fruit"}),
        Finding("Unsure", "", doubtful={4: f"4{end}5"}, certain=False),
    ]
    assert filter_list.write(tmp_path / "list.txt", records, found) == 1
    lines = [line.split("#")[0] for line in (tmp_path / "list.txt").read_bytes().decode().splitlines()]
    assert [int(line) for line in lines if line.strip()] == [3]


def listed_of(path, records, findings) -> list[int]:
    count = filter_list.write(path, records, findings)
    listed = [int(line.split("#")[0]) for line in path.read_text().splitlines() if line.split("#")[0].strip()]
    assert len(listed) == count
    return listed


def eleven_times(wrong: int) -> AllRecords:
    """20 texts, the first 11 of which are equal; of these, number `wrong` has another label."""
    words = np.random.default_rng(0).integers(100, 1000, (20, 12))
    words[:11] = words[0]
    inputs = np.array([" ".join(map(str, row)) for row in words], object)
    groups = np.arange(20) % 2
    groups[:11] = np.arange(11) == wrong
    return AllRecords("mail", "text", np.arange(20), np.full(20, "train"), inputs, groups, ("ham", "spam"))


def test_one_copy_with_the_majority_label_is_kept(tmp_path):
    records = eleven_times(wrong=0)
    found = duplicates.duplicates(records, copies.find_copies(records))
    doubt = Finding("Label doubts", "", doubtful={0: "labelled spam, looks like ham"})
    listed = listed_of(tmp_path / "list.txt", records, [found, doubt])
    assert sorted(listed) == [0, *range(2, 11)]
    assert "# equal to 1, which is labelled ham, this spam\n" in (tmp_path / "list.txt").read_text()


def test_copies_of_an_excluded_record_are_only_suggested(tmp_path):
    records = eleven_times(wrong=20)
    found = duplicates.duplicates(records, copies.find_copies(records))
    doubts = Finding("Label doubts", "", doubtful={0: "labelled ham, looks like spam", 5: "likewise"})
    assert sorted(listed_of(tmp_path / "list.txt", records, [found, doubts])) == [0, 5]
    assert "\n# 1  # equal to 0\n" in (tmp_path / "list.txt").read_text()


def test_equal_rows_of_categories_are_only_suggested(tmp_path):
    inputs = (np.arange(40)[:, None] % 4).astype(np.float32)
    splits = np.repeat(["train", "test"], [30, 10])
    records = AllRecords("people", "table", np.arange(40), splits, inputs, None, ())
    found = copies.find_copies(records)
    findings = [leaks.leaks(records, found), duplicates.duplicates(records, found)]
    assert all(finding.doubtful for finding in findings)
    assert not listed_of(tmp_path / "list.txt", records, findings)
