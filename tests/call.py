"""python -m tests.call MODULE FUNCTION [JSON ...]: prints what a function returns for these arguments, as JSON."""

import importlib
import json
import sys


def words(function, *arguments) -> list[str]:
    """The arguments with which Python calls a function.  It has to stand in a module, which a test file is not."""
    return ["-m", "tests.call", function.__module__, function.__name__, *map(json.dumps, arguments)]


if __name__ == "__main__":
    module, name, *given = sys.argv[1:]
    print(json.dumps(getattr(importlib.import_module(module), name)(*map(json.loads, given))))
