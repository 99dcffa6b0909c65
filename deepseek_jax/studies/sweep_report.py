"""The report of a sweep: its candidates, rung by rung, and the resulting choice."""

import math
from collections.abc import Mapping
from pathlib import Path

from deepseek_jax.errors import UserError
from deepseek_jax.files import read_json
from deepseek_jax.studies.claims import UNFINISHED
from deepseek_jax.studies.page import Block, Code, Heading, Paragraph, Picture, Table
from deepseek_jax.studies.results import FROM_FILE, RESULTS_FILE
from deepseek_jax.studies.runs import command, commands, identity
from deepseek_jax.studies.study import Loaded
from deepseek_jax.studies.sweeping import rungs


def gather(loaded: Loaded, root: Path) -> dict:
    """JSON-able: each rung's share of the steps and scores, and the minutes spent.

    From the run directories if some candidate has reached the first rung; else from the committed results, if these
    are of the same candidates and metric.  UserError if there are none.
    """
    found = rungs(loaded, root)
    runs = found[0].runs
    identities = [identity(run.experiment) if run.experiment else run.problem for run in runs]
    if not found[0].scores:
        return _committed(loaded, identities, root)
    seconds = [float(path.read_text()) for run in runs if (path := run.directory / "seconds.txt").exists()]
    return {
        "study": loaded.name,
        "root": str(root),
        "metric": loaded.study.metric,
        "rungs": [{"share": rung.share, "scores": _finite(rung.scores)} for rung in found],
        "complete": found[-1].complete and found[-1].share == 1,
        "failed": {run.variant.name: run.failure for run in runs if run.failure},
        "minutes": round(sum(seconds) / 60, 1),
        "runs": len(runs),
        "identities": identities,
    }


def _committed(loaded: Loaded, identities: list[str], root: Path) -> dict:
    path = loaded.results / RESULTS_FILE
    content = read_json(path) if path.exists() else {}
    if content.get("identities") != identities or content.get("metric") != loaded.study.metric:
        where = loaded.shown_path
        raise UserError(f"{where} has no run that reached its first rung; `{command('run', loaded, root)}` makes them.")
    return content | {FROM_FILE: True}


def _finite(scores: Mapping[str, float]) -> dict[str, float | None]:
    return {name: score if math.isfinite(score) else None for name, score in scores.items()}


def choice(loaded: Loaded, results: Mapping) -> str:
    """One line: the best candidate or, with `across`, the choice with the least regret."""
    last = _last_scores(results)
    if not results["complete"]:
        return UNFINISHED
    if not last:
        return "every candidate failed"
    if loaded.study.across:
        regrets = loaded.study.regrets(last)
        label = min(regrets, key=regrets.get)
        if math.isinf(regrets[label]):
            return f"no choice has a score at each value of {loaded.study.across}"
        return f"{label} holds across {loaded.study.across}: at worst {regrets[label]:.4f} above the best there"
    best = min(last, key=last.get)
    return f"{best}: {loaded.study.metric} {last[best]:.4f}"


def _last_scores(results: Mapping) -> dict[str, float]:
    """Those of the last rung, without failed candidates."""
    return {name: score for name, score in results["rungs"][-1]["scores"].items() if score is not None}


def build(loaded: Loaded, results: Mapping) -> list[Block]:
    sweep = loaded.study
    title, _, rest = loaded.question.partition("\n")
    whole = f", each choice at all values of `{sweep.across}` or at none" if sweep.across else ""
    rule = (
        f"Stopped early: after {', '.join(f'{share:.0%}' for share in sweep.halving.rungs)} of the steps the best "
        f"{sweep.halving.keep:.0%} by `{sweep.metric}` continue{whole}."
        if sweep.halving
        else "None is stopped early."
    )
    way = f"{sweep.samples} random samples" if sweep.samples else "a grid"
    keys = ", ".join(f"`{key}`" for key in sweep.search)
    setting = (
        f"Base: `{sweep.base}`. {len(sweep.names)} candidates, {way} over {keys}; "
        f"each may spend {sweep.budget:,.0f} {sweep.equal}, {sweep.seeds} seed{'s' * (sweep.seeds > 1)}. {rule}"
    )
    blocks = [Heading(title, 1), *([Paragraph(rest.strip())] if rest.strip() else [])]
    blocks += [Paragraph(f"**{choice(loaded, results)}**"), Heading("Setting"), Paragraph(setting), Heading("Results")]
    blocks.append(_table(loaded, results))
    if results["failed"]:
        blocks.append(Table(["failed", "reason"], sorted(results["failed"].items())))
    if sweep.across and (last := _last_scores(results)):
        from deepseek_jax.studies import sweep_picture

        png = sweep_picture.across(sweep.by_value(last), sweep)
        blocks.append(Picture("across.png", f"{sweep.metric} for each value of {sweep.across}", png))
    blocks += [Heading("Cost and command"), Paragraph(f"{results['runs']} runs, {results['minutes']} minutes in all.")]
    blocks.append(Code(commands(loaded, results["root"])))
    return blocks + ([Paragraph(f"Larger: {sweep.larger}")] if sweep.larger else [])


def _table(loaded: Loaded, results: Mapping) -> Table:
    """One row per candidate, best first: by how many rungs it reached, then by its last score."""
    scores = [rung["scores"] for rung in results["rungs"]]

    def rank(name):
        reached = [of[name] for of in scores if of.get(name) is not None]
        return -len(reached), reached[-1] if reached else math.inf

    head = [loaded.study.metric + " of", *(f"after {rung['share']:.0%}" for rung in results["rungs"])]

    def cell(of, name):
        return "failed" if name in of and of[name] is None else f"{of[name]:.4f}" if name in of else ""

    return Table(head, [[name, *(cell(of, name) for of in scores)] for name in sorted(loaded.study.names, key=rank)])
