"""Every module of benchmarks/ and experiments/ imports: most are only run by hand, and would break unnoticed."""

import importlib
import runpy

import pytest

from tests.paths import ROOT

FILES = sorted(path for room in ("benchmarks", "experiments") for path in (ROOT / room).rglob("*.py"))
RIVALS = ROOT / "benchmarks/rivals"  # scripts for other Pythons, which need not have this package
MODULES = [
    path for path in FILES if path.name != "__main__.py" and path.parent not in (RIVALS, ROOT / "experiments/studies")
]


@pytest.mark.parametrize("module", [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in MODULES])
def test_a_script_imports(module):
    importlib.import_module(module)


@pytest.mark.parametrize("path", sorted(RIVALS.glob("*.py")), ids=lambda path: path.stem)
def test_a_rival_imports(path, monkeypatch):
    if path.stem in ("hugging_face", "torch_hybrid"):
        pytest.importorskip("torch")
        pytest.importorskip("transformers")
    monkeypatch.syspath_prepend(str(RIVALS))
    runpy.run_path(str(path))
