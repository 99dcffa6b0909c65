"""The filter list: what training reads of it again."""

import numpy as np
import pytest

from deepseek_jax.data.quality import filter_list
from deepseek_jax.data.quality.all_records import AllRecords
from deepseek_jax.data.quality.finding import Finding


@pytest.mark.parametrize("end", ["\n", "\r\n", "\u2028"])
def test_a_reason_stays_in_its_line(tmp_path, end):
    columns = {"ids": np.arange(20), "splits": np.full(20, "train"), "inputs": np.zeros((20, 1)), "groups": None}
    records = AllRecords("set", "table", group_names=(), **columns)
    found = [
        Finding("Sure", "", doubtful={3: f"labelled red{end}fruit"}),
        Finding("Unsure", "", doubtful={4: f"4{end}5"}, certain=False),
    ]
    assert filter_list.write(tmp_path / "list.txt", records, found) == 1
    lines = [line.split("#")[0] for line in (tmp_path / "list.txt").read_bytes().decode().splitlines()]
    assert [int(line) for line in lines if line.strip()] == [3]
