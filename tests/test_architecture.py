"""Imports run in the one direction that docs/architecture.md promises, and test files have distinct names."""

import ast
import collections
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "deepseek_jax"
HIGHER = {  # the subpackages that each one must not import
    "models": {"tasks", "data", "convert", "compress", "tune", "infer", "train", "studies", "pods", "cli", "api"},
    "tasks": {"convert", "compress", "tune", "infer", "train", "studies", "pods", "cli", "api"},
    "data": {"convert", "compress", "tune", "infer", "train", "studies", "pods", "cli", "api"},
    "parallel": {"tasks", "convert", "compress", "tune", "infer", "train", "studies", "pods", "cli", "api"},
    "convert": {"compress", "tune", "infer", "train", "studies", "pods", "cli", "api"},
    "tune": {"infer", "train", "studies", "pods", "cli", "api"},
    "compress": {"tune", "infer", "studies", "pods", "cli", "api"},
    "infer": {"tune", "compress", "studies", "pods", "cli", "api"},
    "train": {"studies", "pods", "cli", "api"},
    "studies": {"cli"},
    "pods": {"cli"},
}


def imported(path: Path) -> set[str]:
    """Dotted names of everything that a file imports, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and not node.level:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def test_lower_subpackages_do_not_import_higher_ones():
    against = [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for room, higher in HIGHER.items()
        for path in (PACKAGE / room).rglob("*.py")
        for name in imported(path)
        if name.startswith("deepseek_jax.") and name.split(".")[1] in higher
    ]
    assert not against


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
    names = collections.Counter(path.name for path in Path(__file__).parent.rglob("test_*.py"))
    assert not [name for name, count in names.items() if count > 1]
