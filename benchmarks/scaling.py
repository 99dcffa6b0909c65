"""Bytes that a step sends on 2, 4 and 8 devices at the same global batch: in the compiled program, and by theory.

    python -m benchmarks.scaling --picture docs/pictures/scaling.png

Compiles configs/v3_tiny.py without its MTP module for host devices, along one mesh axis at a time; nothing is run.

n devices along the axis
"""

import argparse
import dataclasses
import math
import os
import sys
from pathlib import Path

SIZES = (2, 4, 8)
FLOAT = 4  # bytes
CONFIG = str(Path(__file__).parents[1] / "configs/v3_tiny.py")
OVERRIDES = {"model.num_nextn_predict_layers": "0", "model.num_attention_heads": "8"}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picture", type=Path, help="also draw the table to this PNG")
    picture = parser.parse_args().picture
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={max(SIZES)}"
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    found = {axis: [measure(axis, n) for n in SIZES] for axis in THEORY}
    print("| axis | devices | MB a device sends a step | theory | ratio | by |\n|---|---|---|---|---|---|")
    for axis, rows in found.items():
        for n, (sent, theory, kinds) in zip(SIZES, rows):
            by = ", ".join(f"{kind} {size / 1e6:.1f}" for kind, size in kinds.items())
            print(f"| {axis} | {n} | {sent / 1e6:.1f} | {theory / 1e6:.1f} | {sent / theory:.2f} | {by} |")
    if picture:
        picture.write_bytes(draw(found))


def measure(axis: str, n: int) -> tuple[float, float, dict[str, float]]:
    """(bytes that a device sends per step, those by theory, the former by collective) for n devices along `axis`."""
    import jax

    from deepseek_jax.config import MeshConfig
    from deepseek_jax.experiment_file import resolve
    from deepseek_jax.parallel.mesh import make_mesh
    from deepseek_jax.pods import hlo
    from deepseek_jax.pods.collectives import collectives, totals
    from deepseek_jax.pods.compiling import compile_for
    from deepseek_jax.train.abstract import describe

    mesh_config = MeshConfig(**{"data": 1, axis: n})
    experiment = dataclasses.replace(resolve(CONFIG, OVERRIDES), mesh=mesh_config)
    abstract, mesh = describe(experiment), make_mesh(mesh_config, jax.devices()[:n])
    program = hlo.parse(compile_for(abstract, mesh).executable.as_text())
    kinds = {kind: sent for kind, (_, sent) in totals(collectives(program, n)).items()}
    return sum(kinds.values()), THEORY[axis](n, sizes(abstract, mesh)), kinds


@dataclasses.dataclass(frozen=True)
class Sizes:
    apart: int  # bytes of parameters that are sharded over the axis
    whole: int  # bytes of those that are replicated
    tokens: int
    model: object


def sizes(abstract, mesh) -> Sizes:
    import jax

    from deepseek_jax.parallel.rules import shardings

    placed = shardings(mesh, abstract.program.axes, abstract.state["params"])
    apart = whole = 0
    for leaf, sharding in zip(jax.tree.leaves(abstract.state["params"]), jax.tree.leaves(placed), strict=True):
        size = math.prod(leaf.shape) * FLOAT
        spread = math.prod(sharding.shard_shape(leaf.shape)) * FLOAT < size
        apart, whole = apart + size * spread, whole + size * (not spread)
    return Sizes(apart, whole, math.prod(abstract.batch["tokens"].shape), abstract.experiment.model)


# Bytes that a device sends per step, with ring algorithms, which send least: 2 (n-1)/n x for an all-reduce of x bytes,
# (n-1)/n x for an all-gather or a reduce-scatter.


def _data(n: int, of: Sizes) -> float:
    """All-reduce of all gradients."""
    return 2 * (n - 1) / n * (of.apart + of.whole)


def _fsdp(n: int, of: Sizes) -> float:
    """All-gather of sharded weights once (no remat), reduce-scatter of their gradients, all-reduce of the others'."""
    return 2 * (n - 1) / n * (of.apart + of.whole)


def _tensor(n: int, of: Sizes) -> float:
    """All-reduce of activations after attention and feed-forward, forward and backward, and at embedding and head."""
    activations = of.tokens * of.model.hidden_size * FLOAT
    return 2 * (n - 1) / n * activations * (4 * of.model.num_hidden_layers + 2)


def _expert(n: int, of: Sizes) -> float:
    """Tokens go to their experts and back, forward and backward; all-reduce of the replicated weights' gradients.

    A token has experts on at most as many devices as there are.
    """
    layers = sum(kind != "dense" for kind in of.model.feed_forward_kinds)
    copies = of.tokens / n * min(of.model.num_experts_per_tok, n) * of.model.hidden_size * FLOAT
    return 4 * layers * (n - 1) / n * copies + 2 * (n - 1) / n * of.whole


THEORY = {"data": _data, "fsdp": _fsdp, "tensor": _tensor, "expert": _expert}


def draw(found: dict) -> bytes:
    """A PNG with a panel per axis: bytes in the compiled program and by theory, against the number of devices."""
    from matplotlib.figure import Figure

    from deepseek_jax.figures import BLUE, ORANGE, STYLE, png, tidy

    figure = Figure(figsize=(11, 3), layout="constrained")
    for axes, (axis, rows) in zip(figure.subplots(1, len(found)), found.items()):
        axes.plot(SIZES, [sent / 1e6 for sent, _, _ in rows], "o-", color=BLUE, label="compiled")
        axes.plot(SIZES, [theory / 1e6 for _, theory, _ in rows], "s--", color=ORANGE, label="theory")
        axes.set_title(axis, loc="left", **STYLE)
        axes.set_xticks(SIZES)
        axes.set_xlabel("devices", **STYLE)
        axes.set_ylim(bottom=0)
        tidy(axes)
    figure.axes[0].set_ylabel("MB a device sends a step", **STYLE)
    figure.axes[0].legend(frameon=False, fontsize=8)
    return png(figure)


if __name__ == "__main__":
    sys.exit(main())
