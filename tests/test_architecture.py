"""The one direction of imports that docs/architecture.md promises, and names of tests that pytest can tell apart."""

import ast
import collections
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "deepseek_jax"
HIGHER = {  # what each room must not know of
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
    """Dotted names of what a file imports, inside of functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and not node.level:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def test_lower_rooms_know_nothing_of_higher_ones():
    against = [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for room, higher in HIGHER.items()
        for path in (PACKAGE / room).rglob("*.py")
        for name in imported(path)
        if name.startswith("deepseek_jax.") and name.split(".")[1] in higher
    ]
    assert not against


def test_the_package_knows_nothing_of_its_users_and_rivals():
    strangers = {"configs", "experiments", "benchmarks", "tests", "torch", "transformers"}
    against = [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path in PACKAGE.rglob("*.py")
        for name in imported(path)
        if name.split(".")[0] in strangers
    ]
    assert not against


def test_no_two_files_of_tests_have_one_name():
    """pytest imports them by it alone: of two it collects one, and only the whole suite has both."""
    names = collections.Counter(path.name for path in Path(__file__).parent.rglob("test_*.py"))
    assert not [name for name, count in names.items() if count > 1]
