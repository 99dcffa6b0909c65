"""Files are written whole or not at all, and JSON is read with a message for each fault."""

from pathlib import Path

import pytest

from deepseek_jax import files
from deepseek_jax.errors import UserError


def test_a_file_may_be_copied_onto_itself(tmp_path):
    path = tmp_path / "a.json"
    files.write_text(path, "ä")
    for _ in range(2):
        files.write_bytes(path, path.read_bytes())
        assert path.read_bytes() == "ä".encode() and [*tmp_path.iterdir()] == [path]


def test_the_old_file_stays_where_writing_fails(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    files.write_json(path, {"a": 1})
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError))
    with pytest.raises(OSError):
        files.write_json(path, {"a": 2})
    assert path.read_text() == '{\n  "a": 1\n}\n'


def test_a_missing_file_and_a_directory_are_refused_by_name(tmp_path):
    with pytest.raises(UserError, match="there is no file .*/a.json"):
        files.read_json(tmp_path / "a.json")
    with pytest.raises(UserError, match=f"cannot read {tmp_path}: Is a directory"):
        files.read_json(tmp_path)
