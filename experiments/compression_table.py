"""What each way of compressing a model costs and saves: V3-tiny, and the hybrid on MNIST-5k, against the dense models.

    python -m experiments.compression_table --v3 runs/v3_tiny --hybrid runs/hybrid_mnist --workdir runs/compression

The runs must have been trained before, with configs/v3_tiny.py and configs/hybrid_mnist.py.  Finished models are not
made again, so the command may be stopped and repeated; --time measures speeds, which needs a quiet machine.  The table
for both models goes to experiments/results/compression.md.
"""

import argparse
import dataclasses
import json
import re
import time
from pathlib import Path

from deepseek_jax.cli import runtime
from deepseek_jax.files import made_whole, write_json
from experiments.runs import publish

SCORED, CALIBRATING = 8, 4  # batches of the language model; the hybrid is scored on its whole test split
TUNED = {  # fine-tuning of pruned models
    "v3": {"train.steps": "30", "optimizer.peak_lr": "3e-4", "optimizer.schedule.warmup_steps": "5"},
    "hybrid": {"train.steps": "200", "optimizer.peak_lr": "1e-3"},
}
QUANTISED = {
    "int8": {"weights": "int8"},
    "int8, activations int8": {"weights": "int8", "activations": "int8"},
    "int4": {"weights": "int4"},
    "int4, groups of 32": {"weights": "int4", "group": 32},
    "fp8, blocks of 128 x 128": {"weights": "fp8"},
    "fp4, groups of 32": {"weights": "fp4"},
}
WEIGHTS = {
    "magnitude 50%": {"sparsity": 0.5},
    "magnitude 50%, global": {"sparsity": 0.5, "scope": "global"},
    "magnitude 2:4": {"pattern": "2:4"},
    "Wanda 50%": {"method": "wanda", "sparsity": 0.5, "scope": "output"},
    "Wanda 2:4": {"method": "wanda", "pattern": "2:4"},
    "Wanda 75%": {"method": "wanda", "sparsity": 0.75, "scope": "output"},
}
STRUCTURED = {
    "v3": {
        "heads 25%": {"method": "heads", "sparsity": 0.25},
        "expert units 25%": {"method": "expert-hidden", "sparsity": 0.25},
        "experts 25%, dropped": {"method": "experts", "sparsity": 0.25},
        "experts 25%, merged": {"method": "merge-experts", "sparsity": 0.25},
    },
    "hybrid": {
        "heads 50%": {"method": "heads", "sparsity": 0.5},
        "recurrent units 25%": {"method": "units", "sparsity": 0.25},
        "channels 25%": {"method": "channels", "sparsity": 0.25},
    },
}
FINE_TUNED = ("dense", "magnitude 50%", "magnitude 2:4", "heads 25%", "experts 25%, merged", "channels 25%")
CONFIGS = {"v3": "configs/v3_tiny.py", "hybrid": "configs/hybrid_mnist.py"}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--v3", type=Path, help="a run of configs/v3_tiny.py")
    parser.add_argument("--hybrid", type=Path, help="a run of configs/hybrid_mnist.py")
    parser.add_argument("--workdir", type=Path, default=Path("runs/compression"))
    parser.add_argument("--only", default="", metavar="REGEX", help="make only rows whose name matches; default: all")
    parser.add_argument("--time", action="store_true", help="measure speeds of what has been made")
    args = parser.parse_args()
    runtime.prepare()
    for model in CONFIGS:
        if run := getattr(args, model):
            maker = Maker(model, run, args.workdir / model, args.only)
            (maker.time_all if args.time else maker.make_all)()
    made = [model for model in CONFIGS if (args.workdir / model / "dense.json").exists()]
    if not made:
        parser.error(f"{args.workdir} holds no smaller model yet; name a run by --v3 or --hybrid")
    tables = "\n".join(table(model, args.workdir / model) for model in made)
    publish("compression", tables, complete=all(is_complete(model, args.workdir / model) for model in CONFIGS))


class Maker:
    """Makes and scores the compressed models of one run, each in its own directory NAME with NAME.json beside it."""

    def __init__(self, model: str, run: Path, workdir: Path, only: str):
        from deepseek_jax.compress.measure import Measure
        from deepseek_jax.train.checkpoints import any_checkpoint

        self.model, self.workdir, self.only, self.given = model, workdir, only, any_checkpoint.read(run)
        self.measure, self.moments = Measure(self.given), None
        self.batches = SCORED if model == "v3" else 0

    def make_all(self):
        self.row("dense", self.dense)
        for name, how in QUANTISED.items():
            self.row(name, lambda directory, how=how: self.quantised(directory, **how))
        pruned = WEIGHTS | STRUCTURED[self.model]
        for name, how in pruned.items():
            self.row(name, lambda directory, how=how: self.pruned(directory, **how))
        for name in (name for name in FINE_TUNED if name in {"dense"} | pruned.keys()):
            self.row(f"{name}, fine-tuned", lambda directory, name=name: self.fine_tuned(directory, name))

    def row(self, name: str, make):
        """Makes this model by `make(directory)`, scores it and writes its row, unless the row exists."""
        from deepseek_jax.compress import source
        from deepseek_jax.train.checkpoints import any_checkpoint

        directory = self.directory(name)
        row = directory.with_suffix(".json")
        if row.exists() or not re.search(self.only, name):
            return
        if not directory.exists():
            with made_whole(directory) as begun:
                make(begun)
        made = any_checkpoint.read(directory)
        scores = self.measure_of(made).scores(made.params, made.buffers, self.batches)
        found = {"name": name, "disk": source.bytes_of(self.small(directory)), "parameters": size(made)} | scores
        write_json(row, found)
        print(json.dumps(found), flush=True)

    def directory(self, name: str) -> Path:
        return self.workdir / name.replace(" ", "_").replace(",", "").replace("%", "").replace(":", "_")

    def measure_of(self, made):
        from deepseek_jax.compress.measure import Measure

        plain = made.config == self.given.config and made.experiment.arithmetic == self.given.experiment.arithmetic
        return self.measure if plain else Measure(made)

    def small(self, directory: Path) -> Path:
        """The directory, or for a training run one beside it with the same model, without the optimizer."""
        from deepseek_jax.compress import source
        from deepseek_jax.train.checkpoints import any_checkpoint

        if not (directory / "metrics.jsonl").exists():
            return directory
        alone = directory.with_name(directory.name + "_alone")
        if not alone.exists():
            with made_whole(alone) as begun:
                source.write(begun, source.with_sections(any_checkpoint.read(directory)))
        return alone

    def dense(self, directory: Path):
        from deepseek_jax.compress import source

        source.write(directory, source.with_sections(self.given))

    def quantised(self, directory: Path, weights: str, group: int = 0, activations: str | None = None):
        from deepseek_jax.compress.config import QuantizeConfig
        from deepseek_jax.compress.quantizing import quantize

        quantize(self.given, directory, QuantizeConfig(weights, group), activations, self.measure, CALIBRATING)

    def pruned(self, directory: Path, method: str = "magnitude", **settings):
        from deepseek_jax.compress import source
        from deepseek_jax.compress.calibrate import input_sums
        from deepseek_jax.compress.config import PruneConfig
        from deepseek_jax.compress.pruning import METHODS

        if METHODS[method].calibrated and self.moments is None:
            self.moments = input_sums(self.measure, self.given, CALIBRATING)
        moments = self.moments if METHODS[method].calibrated else None
        source.write(directory, METHODS[method].remove(self.given, PruneConfig(**settings), moments).source)

    def fine_tuned(self, directory: Path, name: str):
        from rich.console import Console

        from deepseek_jax import record
        from deepseek_jax.experiment_file import resolve
        from deepseek_jax.train.loop import train

        begin = self.directory(name)
        begun = record.read(begin)
        experiment = resolve(CONFIGS[self.model], TUNED[self.model] | {"start.checkpoint": str(begin)})
        train(dataclasses.replace(experiment, model=begun.model, prune=begun.prune), directory, Console(quiet=True))

    def time_all(self):
        """Adds seconds per scored batch to the rows of the dense model and of those that compute something else."""
        from deepseek_jax.train.checkpoints import any_checkpoint

        for row in sorted(self.workdir.glob("*.json")):
            found = json.loads(row.read_text())
            made = any_checkpoint.read(row.with_suffix(""))
            measure = self.measure_of(made)
            if "seconds" in found or (measure is self.measure and found["name"] != "dense"):
                continue
            measure.scores(made.params, made.buffers, 2)
            seconds = []
            for _ in range(3):
                began = time.perf_counter()
                measure.scores(made.params, made.buffers, 4)
                seconds.append((time.perf_counter() - began) / 4)
            write_json(row, found | {"seconds": min(seconds)})


def names(model: str) -> list[str]:
    """The rows of a model's table, in order."""
    plain = ["dense", *QUANTISED, *WEIGHTS, *STRUCTURED[model]]
    return [each for name in plain for each in (name, *([f"{name}, fine-tuned"] if name in FINE_TUNED else []))]


def is_complete(model: str, workdir: Path) -> bool:
    """Whether all rows of the model's table have been made."""
    return set(names(model)) <= rows_of(workdir).keys()


def rows_of(workdir: Path) -> dict[str, dict]:
    """The rows that have been made, by name."""
    return {row["name"]: row for row in (json.loads(path.read_text()) for path in workdir.glob("*.json"))}


def size(made) -> int:
    import jax

    return sum(leaf.size for leaf in jax.tree.leaves(made.params))


def table(model: str, workdir: Path) -> str:
    """A Markdown table of every model's loss, accuracy, bytes and speed, compared with the dense one."""
    rows = rows_of(workdir)
    dense, accurate = rows["dense"], model == "hybrid"
    heading = f"| {'hybrid, MNIST-5k' if accurate else 'V3-tiny'} | loss | change |{' accuracy |' if accurate else ''}"
    lines = [f"{heading} parameters | bytes on disk | of dense | time a batch |"]
    lines.append("|---|" + "---:|" * (7 if accurate else 6))
    for name in filter(rows.__contains__, names(model)):
        row = rows[name]
        change = row["loss"] / dense["loss"] - 1
        accuracy = f" {row['accuracy']:.1%} |" if accurate else ""
        own = "activations" in name or name.removesuffix(", fine-tuned") in STRUCTURED[model]
        ratio = "not measured" if own else "as dense"
        if "seconds" in row:
            ratio = f"{row['seconds'] / dense['seconds']:.2f}"
        lines.append(
            f"| {name} | {row['loss']:.4f} | {change:+.2%} |{accuracy} {row['parameters']:,} | {row['disk']:,} | "
            f"{row['disk'] / dense['disk']:.1%} | {ratio} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    runtime.script(main)
