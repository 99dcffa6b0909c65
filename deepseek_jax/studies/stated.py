"""What a study claimed before its first run: stored beside the runs, so that a margin fitted to them is reported."""

from collections.abc import Mapping
from pathlib import Path

from deepseek_jax.files import read_json, write_json
from deepseek_jax.studies import runs
from deepseek_jax.studies.study import Loaded, Study

STATED_FILE = "stated.json"  # in the study's folder under the root


def keep(loaded: Loaded, root: Path):
    """Stores the claims.  Once a run has finished, claims that were stored before are not replaced."""
    if not loaded.study.claims:  # a sweep
        return
    claims = _claims(loaded.study)
    before = read(loaded, root)
    if before is None or before != claims and not any(run.trained for run in runs.plan(loaded, root)):
        write_json(root / loaded.name / STATED_FILE, {"claims": claims})


def read(loaded: Loaded, root: Path) -> list[dict] | None:
    """The claims that `keep` stored, the main one first; None if there are none."""
    path = root / loaded.name / STATED_FILE
    return read_json(path)["claims"] if path.exists() else None


def _claims(study: Study) -> list[dict]:
    return [{"metric": claim.metric, "margin": claim.margin, "text": claim.text} for claim in study.claims]


def main_changed(study: Study, stated: list[dict] | None) -> bool:
    """Whether the main claim differs from the one stated before the runs; False if none was stored."""
    return stated is not None and _claims(study)[0] != stated[0]


def changes(study: Study, stated: list[dict] | None) -> str:
    """The differences between the present claims and those stated before, in words; "" if there are none."""
    now = _claims(study)
    if stated is None or now == stated:
        return ""
    sides = {
        "Stated before its first run": [claim for claim in stated if claim not in now],
        "Claimed only since then": [claim for claim in now if claim not in stated],
    }
    told = [f"{when}: {'; and '.join(map(_words, claims))}." for when, claims in sides.items() if claims]
    return " ".join(["What this study claims was changed after its first run.", *told])


def _words(claim: Mapping) -> str:
    return f"{claim['text']} (by `{claim['metric']}`, margin {claim['margin']})"
