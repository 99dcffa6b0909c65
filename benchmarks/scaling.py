"""What a step sends on 2, 4 and 8 devices at the same global batch: the compiled bytes beside the theory's.

    python -m benchmarks.scaling --picture docs/pictures/scaling.png

Compiles configs/v3_tiny.py without its MTP module for host devices, along one mesh axis at a time; nothing is run.

n devices along the axis  P bytes of parameters that lie apart along it, R of the others  T tokens of the batch
D model  L layers  K experts a token
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
    parser.add_argument("--picture", type=Path, help="a PNG of the table")
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
    """(bytes that a device sends a step, the theory's, the former by kind) for n devices along `axis`."""
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
    apart: int  # bytes of parameters that are spread over the axis
    whole: int  # of the others
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


# By rings, which send least.  all-reduce of x bytes: 2 (n-1)/n x; gathering or scattering them: (n-1)/n x.


def _data(n: int, of: Sizes) -> float:
    """Gradients are summed."""
    return 2 * (n - 1) / n * (of.apart + of.whole)


def _fsdp(n: int, of: Sizes) -> float:
    """Weights are gathered once a step, without remat; their gradients are scattered; the others' are summed."""
    return 2 * (n - 1) / n * (of.apart + of.whole)


def _tensor(n: int, of: Sizes) -> float:
    """Activations are summed after attention and feed-forward, forward and backward; and around embedding and head."""
    activations = of.tokens * of.model.hidden_size * FLOAT
    return 2 * (n - 1) / n * activations * (4 * of.model.num_hidden_layers + 2)


def _expert(n: int, of: Sizes) -> float:
    """Each token goes to its experts and back, forward and backward; gradients of what all hold are summed."""
    layers = sum(kind != "dense" for kind in of.model.feed_forward_kinds)
    copies = of.tokens / n * of.model.num_experts_per_tok * of.model.hidden_size * FLOAT
    return 4 * layers * (n - 1) / n * copies + 2 * (n - 1) / n * of.whole


THEORY = {"data": _data, "fsdp": _fsdp, "tensor": _tensor, "expert": _expert}


def draw(found: dict) -> bytes:
    """A panel for each axis: bytes in the compiled program and by theory, over devices."""
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
