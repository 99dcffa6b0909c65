"""Files are written whole or not at all."""

from pathlib import Path

import pytest

from deepseek_jax import whole_files


def test_a_file_may_be_copied_onto_itself(tmp_path):
    path = tmp_path / "a.json"
    whole_files.write_text(path, "ä")
    for _ in range(2):
        whole_files.copy(path, path)
        assert path.read_bytes() == "ä".encode() and [*tmp_path.iterdir()] == [path]


def test_the_old_file_stays_where_writing_fails(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    whole_files.write_json(path, {"a": 1})
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError))
    with pytest.raises(OSError):
        whole_files.write_json(path, {"a": 2})
    assert path.read_text() == '{\n "a": 1\n}\n'
