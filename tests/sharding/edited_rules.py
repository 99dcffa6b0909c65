"""The loss curves of tests.sharding.curves after edits of the table in parallel/rules.py.

python -m tests.sharding.edited_rules 'OLD->NEW' 'OLD->NEW' ... v3 one fsdp=2,tensor=2
"""

import importlib.util
import sys
from pathlib import Path

NAME = "deepseek_jax.parallel.rules"


def edit(replacements: list[str]):
    """Imports the rules as if their file had these edits; to be called before anything else imports them."""
    spec = importlib.util.find_spec(NAME)
    source = Path(spec.origin).read_text()
    for old, new in (each.split("->") for each in replacements):
        assert source.count(old) == 1, old
        source = source.replace(old, new)
    sys.modules[NAME] = importlib.util.module_from_spec(spec)
    exec(compile(source, spec.origin, "exec"), vars(sys.modules[NAME]))


if __name__ == "__main__":
    edits = [argument for argument in sys.argv[1:] if "->" in argument]
    edit(edits)
    from tests.sharding import curves

    curves.main(*sys.argv[1 + len(edits) :])
