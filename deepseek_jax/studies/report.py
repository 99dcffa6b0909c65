"""The report of a study: question, setting, table, verdict, figures, cost and command.

It depends only on the study's file and its gathered results, not on the date, so making it twice gives equal files.
"""

import json
import math
import statistics
from collections.abc import Mapping
from pathlib import Path

from deepseek_jax.experiment_file import resolve
from deepseek_jax.files import write_bytes, write_text
from deepseek_jax.studies import curves, stated, sweep_report
from deepseek_jax.studies.claims import Judged
from deepseek_jax.studies.differences import Difference, difference
from deepseek_jax.studies.page import Block, Code, Heading, Paragraph, Picture, Table, markdown, page
from deepseek_jax.studies.results import (
    FROM_FILE,
    RESULTS_FILE,
    devices,
    gather,
    main_verdict,
    need_some,
    speed_key,
    values,
    verdicts,
)
from deepseek_jax.studies.runs import commands
from deepseek_jax.studies.study import Loaded, Study
from deepseek_jax.studies.sweep import Sweep

FEW = 6  # pairs: the differences of fewer have all the same sign by chance with a probability of 1/16 or more
MARKDOWN, HTML = "report.md", "report.html"
HIDDEN = ("val/", "memory_bytes", "final/bytes")  # prefixes of scores that are shown only if a claim uses them


def write(loaded: Loaded, root: Path, folder: Path | None = None) -> tuple[Path, str]:
    """Writes report.md, report.html, results.json and figures; returns (the folder, the main verdict in a line)."""
    if isinstance(loaded.study, Sweep):
        results = sweep_report.gather(loaded, root)
        blocks, verdict = sweep_report.build(loaded, results), sweep_report.choice(loaded, results)
    else:
        results = gather(loaded, root)
        need_some(results, loaded)
        blocks, verdict = build(loaded, results), main_verdict(loaded, results)
    if results.get(FROM_FILE):
        verdict += f" (from its {RESULTS_FILE}: {root} has no run of it)"
    folder = folder or loaded.results
    for block in blocks:
        if isinstance(block, Picture):
            write_bytes(folder / block.file, block.png)
    write_text(folder / MARKDOWN, markdown(blocks))
    write_text(folder / HTML, page(loaded.name, blocks))
    write_text(folder / RESULTS_FILE, dumps(results))
    return folder, verdict


def dumps(results: Mapping) -> str:
    """JSON with one line per run, so that a git diff shows which runs changed."""
    kept = {key: value for key, value in results.items() if key != FROM_FILE}
    if not isinstance(kept["runs"], list):
        return json.dumps(kept, indent=1, sort_keys=True) + "\n"
    runs = ",\n".join("  " + json.dumps(run, sort_keys=True) for run in kept.pop("runs"))
    return json.dumps(kept, indent=1, sort_keys=True)[:-2] + f',\n "runs": [\n{runs}\n ]\n}}\n'


def build(loaded: Loaded, results: Mapping) -> list[Block]:
    judged = verdicts(loaded, results)
    title, _, rest = loaded.question.partition("\n")
    blocks = [Heading(title, 1), *([Paragraph(rest.strip())] if rest.strip() else [])]
    verdict = main_verdict(loaded, results)
    blocks += [
        Paragraph(f"**{verdict[0].upper()}{verdict[1:]}.** {_sentence(loaded, judged[0])}"),
        *([Paragraph(changes)] if (changes := stated.changes(loaded.study, results["stated"])) else []),
        *_setting(loaded, results),
    ]
    blocks += [Heading("Results"), _table(loaded, results), *_few_pairs(loaded, results), *_failures(results)]
    blocks += _further(loaded, results)
    blocks += [Heading("Claims"), _claims(loaded, judged), *_pictures(loaded, results)]
    return blocks + _cost(loaded, results)


def _sentence(loaded: Loaded, judged: list[Judged]) -> str:
    return "; ".join(f"{each.clause}: {each.verdict}" for each in judged) + f" (by `{loaded.study.metric}`)."


def _setting(loaded: Loaded, results: Mapping) -> list[Block]:
    study = loaded.study
    units = "records" if results.get("family") == "supervised" else "tokens"
    what = {"steps": "number of steps", "tokens": units}.get(study.equal, study.equal)
    text = (
        f"Base: `{study.base}`. Each run may spend the same {what}: {study.budget:,.0f}. {study.seeds} paired seeds. "
        f"Metric: `{study.metric}`; a difference counts from {study.margin} on."
    )
    if where := devices(results):
        text += f" Measured on {' and '.join(where)}{', so speeds do not compare' * (len(where) > 1)}."
    versions = len({run["code"] for run in results["runs"]})
    if versions > 1:
        text += f" The runs were trained by {versions} versions of the code."
    changed = [[variant.name, _changes(variant)] for variant in study.variants]
    return [Heading("Setting"), Paragraph(text), Table(["variant", "what differs from the base"], changed)]


def _changes(variant) -> str:
    changes = [f"`{key}={_text(value)}`" for key, value in variant.changes.items()]
    if variant.edit:
        changes.append(f"after training: {(variant.edit.__doc__ or variant.edit.__name__).strip().splitlines()[0]}")
    return ", ".join(changes) or "nothing"


def _text(value) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def _table(loaded: Loaded, results: Mapping) -> Table:
    study, found = loaded.study, values(results, loaded.study.metric)
    speeds = {name: statistics.mean(of.values()) for name, of in values(results, speed_key(results)).items()}
    mean_curves, base = curves.by_variant(results), study.names[0]
    head = [
        *("variant", "seeds", f"{study.metric}, mean ± sd", f"minus {base} [95% interval]", "p, paired t"),
        *("p, bootstrap", speed_key(results).replace("_per_second", "/s"), "effective speed-up"),
        *(["parameters", "active"] if results["family"] == "language_model" else []),
    ]
    rows = []
    for name in study.names:
        of = found.get(name, {})
        row = [name, str(len(of)), _mean(list(of.values()))]
        row += _difference(paired(found, name, base)) if name != base else ["", "", ""]
        row.append(f"{speeds[name]:,.0f}" if name in speeds else "")
        both = {name, base} <= mean_curves.keys() & speeds.keys() and name != base and _compares(study, name)
        gain = both and curves.speed_up(mean_curves[base], mean_curves[name], speeds[base], speeds[name])
        row.append(f"{gain:.2f}" if gain > 0 else "")
        if results["family"] == "language_model":
            row += [f"{count / 1e6:.3f}M" for count in _parameters(results, name)] or ["", ""]
        rows.append(row)
    return Table(head, rows)


def _mean(values: list[float]) -> str:
    """The mean ± standard deviation; without the latter for a single value or if some value is not finite."""
    if not values:
        return ""
    varies = len(values) > 1 and all(map(math.isfinite, values))
    return f"{statistics.mean(values):.4f}" + (f" ± {statistics.stdev(values):.4f}" if varies else "")


def _compares(study: Study, name: str) -> bool:
    """Whether a variant's training loss is comparable with the base's: not if an edit changes the trained model."""
    base, variant = study.variants[0], study.variants[study.names.index(name)]
    experiments = (resolve(study.base, dict(each.changes)) for each in (base, variant))
    return not variant.edit and curves.comparable(*experiments)


def _parameters(results: Mapping, name: str) -> list[int]:
    counts = (run["parameters"] for run in results["runs"] if run["variant"] == name)
    return next(([each["total"], each["active"]] for each in counts), [])


def paired(found: Mapping[str, Mapping[int, float]], name: str, base: str) -> Difference | None:
    """The difference of a variant minus the base over the seeds that both have; None for fewer than two."""
    left, right = found.get(name, {}), found.get(base, {})
    seeds = sorted(left.keys() & right.keys())
    return difference([left[s] for s in seeds], [right[s] for s in seeds]) if len(seeds) > 1 else None


def _few_pairs(loaded: Loaded, results: Mapping) -> list[Block]:
    """A caveat on the bootstrap's p value, which is the smallest possible once all differences have the same sign."""
    found, base = values(results, loaded.study.metric), loaded.study.names[0]
    pairs = [len(found[name].keys() & found[base].keys()) for name in found if name != base and base in found]
    fewest = min((count for count in pairs if count > 1), default=FEW)
    if fewest >= FEW:
        return []
    warning = "can resample only these differences and is overconfident; verdicts use Student's interval alone."
    return [Paragraph(f"With {fewest} pairs the bootstrap {warning}")]


def _difference(found: Difference | None) -> list[str]:
    if found is None:
        return ["", "", ""]
    interval = f"{found.mean:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"
    return [interval, _p(found.p_t), _p(found.p_bootstrap)]


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _failures(results: Mapping) -> list[Block]:
    blocks = []
    for kind in ("failed", "unmeasured"):
        if rows := [[each["variant"], str(each["seed"]), each["reason"]] for each in results[kind]]:
            blocks.append(Table([kind, "seed", "reason"], rows))
    if results["missing"]:
        blocks.append(Paragraph(f"{results['missing']} runs are still missing."))
    if results["stale"]:
        blocks.append(Paragraph(f"{results['stale']} stale runs, of an older version of this study, are left out."))
    return blocks


def _further(loaded: Loaded, results: Mapping) -> list[Block]:
    """Other scores, mean over seeds: of measures and further claims, and router and indexer metrics."""
    names = {name for run in results["runs"] for name in run["scores"]} - {loaded.study.metric, speed_key(results)}
    asked = {claim.metric for claim in loaded.study.further}
    shown = sorted(name for name in names if name in asked or not name.startswith(HIDDEN))
    if not shown:
        return []
    by_name = {name: values(results, name) for name in shown}
    rows = []
    for metric in shown:
        means = [by_name[metric].get(variant, {}) for variant in loaded.study.names]
        rows.append([f"`{metric}`", *(_number(statistics.mean(of.values())) if of else "" for of in means)])
    return [Heading("Further scores, mean over seeds"), Table(["score", *loaded.study.names], rows)]


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _claims(loaded: Loaded, judged: list[list[Judged]]) -> Table:
    rows = []
    for claim, clauses in zip(loaded.study.claims, judged, strict=True):
        rows += [
            [str(each.clause), f"`{claim.metric}`", str(claim.margin), each.verdict, each.reason] for each in clauses
        ]
    return Table(["claim", "by", "margin", "verdict", "because"], rows)


def _pictures(loaded: Loaded, results: Mapping) -> list[Block]:
    from deepseek_jax.studies import pictures  # matplotlib takes a second to import

    names = loaded.study.names
    drawn = {
        "loss.png": ("loss over what was spent, bands of one standard deviation", pictures.losses(results, names)),
        "seeds.png": (f"{loaded.study.metric}, every seed", pictures.seeds(results, names, loaded.study.metric)),
        "loads.png": ("load of each expert over the mean, rows are seeds and layers", pictures.loads(results, names)),
    }
    found = [Picture(file, alt, png) for file, (alt, png) in drawn.items() if png]
    return [Heading("Pictures"), *found] if found else []


def _cost(loaded: Loaded, results: Mapping) -> list[Block]:
    seconds = {run["identity"]: run["seconds"] for run in results["runs"]}
    text = f"{len(seconds)} trainings, {sum(seconds.values()) / 60:.1f} minutes in all"
    text += f" on {' and '.join(devices(results))}." if seconds else "."
    blocks = [Heading("Cost and command"), Paragraph(text)]
    blocks.append(Code(commands(loaded, results["root"])))
    return blocks + ([Paragraph(f"Larger: {loaded.study.larger}")] if loaded.study.larger else [])
