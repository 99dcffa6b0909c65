"""Imports run in the one direction that docs/architecture.md promises, and test files can be moved and changed."""

import ast
import collections
from pathlib import Path

from tests.paths import ROOT

PACKAGE, TESTS = ROOT / "deepseek_jax", ROOT / "tests"
ORDER = (  # each subpackage may import those before it
    *("parallel", "models", "tasks", "data", "convert", "views", "infer", "train"),
    *("compress", "tune", "predict", "studies", "pods", "cli"),
)


def imported(path: Path) -> set[str]:
    """Dotted names of everything that a file imports, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and not node.level:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def test_subpackages_import_only_those_before_them():
    """Dataclasses of settings (config.py of a directory) may be imported from anywhere."""
    against = [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for room in ORDER
        for path in (PACKAGE / room).rglob("*.py")
        for name in imported(path)
        if name.startswith("deepseek_jax.") and name.split(".")[1] in (*ORDER[ORDER.index(room) + 1 :], "api")
        if not any(part == "config" for part in name.split("."))
    ]
    assert not against


def test_every_subpackage_has_a_place_in_the_order():
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == set(ORDER)


def test_the_package_imports_neither_its_users_nor_torch_or_transformers():
    strangers = {"configs", "experiments", "benchmarks", "tests", "torch", "transformers"}
    against = [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path in PACKAGE.rglob("*.py")
        for name in imported(path)
        if name.split(".")[0] in strangers
    ]
    assert not against


def test_files_are_written_whole_except_where_the_user_names_them():
    named = {"cli/find_lr.py", "data/quality/filter_list.py", "data/quality/report.py", "data/sets/show.py"}
    plain = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in ("write_text", "write_bytes")
    }
    assert plain == named | {"files.py"}


def test_no_two_test_files_have_the_same_name():
    """pytest imports test files by base name: two of the same name break the collection of the whole suite."""
    names = collections.Counter(path.name for path in TESTS.rglob("test_*.py"))
    assert not [name for name, count in names.items() if count > 1]


def test_test_files_share_helpers_by_plain_modules():
    """A conftest.py would be loaded twice, and a test file has to stay free to change."""
    against = [
        f"{path.relative_to(TESTS)} imports {name}"
        for path in TESTS.rglob("*.py")
        for name in imported(path)
        if name.startswith("tests.") and any(part.startswith(("test_", "conftest")) for part in name.split(".")[1:])
    ]
    assert not against
