"""Files and directories are written whole or not at all, and JSON is read with a message for each fault."""

import signal
from pathlib import Path

import pytest

from deepseek_jax import files
from deepseek_jax.errors import UserError
from deepseek_jax.files import made_whole
from deepseek_jax.uninterrupted import uninterrupted


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
    assert path.read_text() == '{\n  "a": 1\n}\n' and [*tmp_path.iterdir()] == [path]


def test_a_missing_file_and_a_directory_are_refused_by_name(tmp_path):
    with pytest.raises(UserError, match="there is no file .*/a.json"):
        files.read_json(tmp_path / "a.json")
    with pytest.raises(UserError, match=f"cannot read {tmp_path}: Is a directory"):
        files.read_json(tmp_path)


@pytest.fixture(params=["absent", "empty", "a link"])
def target(request, tmp_path) -> Path:
    """A directory that may be made: one that is absent, is empty, or is a link to an empty one."""
    found = tmp_path / "place/out"
    if request.param == "empty":
        found.mkdir(parents=True)
    elif request.param == "a link":
        (tmp_path / "elsewhere").mkdir()
        found.parent.mkdir()
        found.symlink_to(tmp_path / "elsewhere")
    return found


def fill(directory: Path):
    (directory / "checkpoints/1").mkdir(parents=True)
    (directory / "config.json").write_text("{}")


def entries(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.rglob("*"))


def test_a_directory_appears_when_it_is_complete(target):
    was_there = target.exists()
    with made_whole(str(target)) as directory:
        assert directory.name == target.resolve().name and not entries(directory)
        fill(directory)
        assert target.exists() == was_there and not (target / "config.json").exists()
    assert entries(target) == ["1", "checkpoints", "config.json"]
    assert not [path for path in target.parent.parent.rglob("*.partial")]


@pytest.mark.parametrize("error", [KeyboardInterrupt, UserError, OSError])
def test_nothing_is_left_of_a_directory_whose_making_failed(target, error):
    was_there = target.exists()
    with pytest.raises(error), made_whole(target) as directory:
        fill(directory)
        raise error
    assert target.exists() == was_there
    assert entries(target.parent) == [target.name] * was_there


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_what_a_killed_process_left_is_replaced(target, signum, run_python):
    command = (
        "import os, sys; from deepseek_jax.files import made_whole\n"
        "with made_whole(sys.argv[1]) as directory:\n"
        "    (directory / 'config.json').touch(); (directory / 'old').touch()\n"
        f"    os.kill(os.getpid(), {signum})"
    )
    for _ in range(2):
        assert run_python("-c", command, str(target.absolute())).returncode == -signum
        assert not (target / "config.json").exists()
    with made_whole(target) as directory:
        fill(directory)
    assert entries(target) == ["1", "checkpoints", "config.json"]
    assert not [path for path in target.parent.parent.rglob("*.partial")]


def test_a_directory_that_another_process_is_making_is_refused(target):
    with made_whole(target) as directory:
        with pytest.raises(UserError, match=f"^another process is making {target}; wait for it or give another"):
            with made_whole(target):
                pass
        fill(directory)
    assert entries(target) == ["1", "checkpoints", "config.json"]


def test_a_directory_that_is_not_free_is_refused(tmp_path):
    (tmp_path / "file").touch()
    for target, message in (("file", "file is a file; give a"), (".", "is not empty; give a directory that does not")):
        with pytest.raises(UserError, match=message), made_whole(tmp_path / target):
            pass
    with pytest.raises(UserError, match="file/out cannot be made a directory: Not a directory; give another."):
        with made_whole(tmp_path / "file" / "out"):
            pass
    assert entries(tmp_path) == ["file"]


def test_a_first_ctrl_c_is_delayed_but_not_a_second():
    heard, before = [], signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, lambda signum, frame: heard.append(signum))
    try:
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            assert heard == []
        assert heard == [signal.SIGINT]
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            assert heard == [signal.SIGINT] * 2
        signal.raise_signal(signal.SIGINT)
        assert heard == [signal.SIGINT] * 4
    finally:
        signal.signal(signal.SIGINT, before)
