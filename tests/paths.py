"""Where the tests find the repository, and the models and numbers that other programs computed (tests/goldens)."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GOLDENS = ROOT / "tests" / "goldens"
