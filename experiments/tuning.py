"""Methods of fine-tuning v3_tiny on literature, against training all of it: loss, trained parameters, memory.

    python -m experiments.tuning --base runs/v3_tiny --workdir runs/tuning

The base is a run of configs/v3_tiny.py.  The table goes to experiments/results/tuning.md.
"""

import argparse
import json
from pathlib import Path

import jax
import numpy as np
from rich.console import Console

from deepseek_jax.cli import runtime
from deepseek_jax.experiment_file import resolve
from deepseek_jax.files import write_json
from deepseek_jax.studies.page import Table, markdown
from deepseek_jax.train.expert_use import expert_use
from deepseek_jax.train.setup import prepare
from deepseek_jax.train.start import first_state
from deepseek_jax.tune.esft import as_setting, choose
from experiments.runs import finished, publish

HEAD = (
    *("trained", "numbers trained", "share of all", "moments", "held-out loss, nats"),
    *("loss relative to training all of it", "share of its gain"),
)
EXPERTS = "(chosen)"
METHODS = {  # row of the table -> (config, overrides)
    "all of it": ("tune_tiny", {}),
    "LoRA of rank 2, everywhere": ("lora_tiny", {}),
    "DoRA of rank 2, everywhere": ("lora_tiny", {"tune.lora.dora": "True"}),
    "QLoRA: LoRA over int4 in groups of 32": ("lora_tiny", {"quantize.weights": "int4", "quantize.group": "32"}),
    "ESFT, {experts} of 48 experts": ("esft_tiny", {"tune.experts": EXPERTS}),
}
QUIET = Console(quiet=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=Path("runs/v3_tiny"))
    parser.add_argument("--workdir", type=Path, default=Path("runs/tuning"))
    parser.add_argument("--threshold", type=float, default=0.35, help="for ESFT, by token share")
    parser.add_argument("methods", nargs="*", type=int, help="rows of the table, from 0; default: all")
    args = parser.parse_args()
    runtime.prepare()
    args.workdir.mkdir(parents=True, exist_ok=True)
    base = {"start.checkpoint": str(args.base), "data.tokenizer": str(args.base / "tokenizer.json")}
    before = once(args.workdir / "before.json", lambda: held_out_loss(resolve("configs/tune_tiny.py", base)))
    chosen = once(args.workdir / "experts.json", lambda: experts(base, args.threshold))
    rows, whole = [["nothing: as the run begins", "0", "0%", "0", f"{before:.4f}", "", ""]], None
    for number in args.methods or range(len(METHODS)):
        (name, (config, changes)) = list(METHODS.items())[number]
        changes = base | {key: chosen if value == EXPERTS else value for key, value in changes.items()}
        run = args.workdir / f"method_{number}"
        loss = finished(f"configs/{config}.py", changes, 0, run)["final/loss"]
        count, share = trained(resolve(f"configs/{config}.py", changes))
        whole = loss if number == 0 else whole
        beside = [f"{loss / whole - 1:+.2%}", f"{(before - loss) / (before - whole):.0%}"] if whole else ["", ""]
        name = name.format(experts=sum(len(part.split(":")[1].split()) for part in chosen.split(";")))
        rows.append([name, f"{count:,}", f"{share:.2%}", f"{8 * count / 1e6:.1f} MB", f"{loss:.4f}", *beside])
    publish("tuning", markdown([Table(HEAD, rows)]), complete=len(rows) == len(METHODS) + 1)


def once(path: Path, make):
    """The result of `make()`, or of an earlier call, cached as JSON at `path`."""
    if not path.exists():
        write_json(path, make())
    return json.loads(path.read_text())


def held_out_loss(experiment) -> float:
    """The held-out loss of the model that the experiment starts from, in nats per token."""
    setup = prepare(experiment)
    state = first_state(setup)
    return setup.scores(state["params"], state["buffers"], "final")["loss"]


def experts(base: dict, threshold: float) -> str:
    shares = expert_use(resolve("configs/esft_tiny.py", base), 8, QUIET)["token"]
    return as_setting(choose(shares, threshold))


def trained(experiment) -> tuple[int, float]:
    """(how many parameters are trained, their number as a share of the model's)."""
    program = prepare(experiment).program
    own = program.model or program

    def size(tree):
        return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))

    count = size(jax.eval_shape(program.make_parameters)[0])
    return count, count / size(jax.eval_shape(own.make_parameters)[0])


if __name__ == "__main__":
    runtime.script(main)
