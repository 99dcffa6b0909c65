"""Fixtures: study files in an empty directory, and a fake trainer that takes no time."""

import pytest

from deepseek_jax.studies.study import load
from tests.studies.fake import BASE, STUDY, Trainer
from tests.user_files import write_config


@pytest.fixture
def drawn():
    """For a test whose pictures are really drawn."""


@pytest.fixture(autouse=True)
def undrawn(request, monkeypatch):
    """Elsewhere pictures are empty files: nobody looks at them, and drawing took a third of the time."""
    from deepseek_jax.studies import pictures, sweep_picture

    if "drawn" not in request.fixturenames:
        for module in (pictures, sweep_picture):
            monkeypatch.setattr(module, "png", lambda figure: b"")


@pytest.fixture
def trainer(monkeypatch):
    from deepseek_jax.studies import outcome
    from deepseek_jax.train import loop
    from deepseek_jax.train.checkpoints import checkpoint

    trainer = Trainer()
    monkeypatch.setattr(loop, "train", trainer)
    monkeypatch.setattr(outcome, "_parameters", lambda experiment: {"total": 10**6, "active": 5 * 10**5})

    def newest(folder):
        return max((int(path.name) for path in folder.glob("*")), default=None)

    monkeypatch.setattr(checkpoint, "newest_intact", newest)
    return trainer


@pytest.fixture
def root(tmp_path):
    """The directory for the runs of studies."""
    return tmp_path / "runs"


@pytest.fixture
def make(tmp_path, monkeypatch):
    """make(further="", text=STUDY) writes a study file, with `further` variants, and loads it.

    In an empty working directory, as paths below the working directory are shown without it.
    """
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    write_config(tmp_path / "base.py", BASE)

    def write_and_load(further="", text=STUDY):
        folder = tmp_path / "experiments" / "studies"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "rate.py").write_text(text.format(base=tmp_path / "base.py", further=further))
        return load(folder / "rate.py")

    return write_and_load
