"""deepseek-jax plan."""

import dataclasses

from deepseek_jax.cli import options, pods


def add_to(verbs):
    parser = options.add_verb(
        verbs,
        "plan",
        run,
        "show how a model would be sharded on a TPU or GPU cluster, and whether it fits, without any device",
        f"""\
Prints, for each parameter, the mesh axes that split it and a device's part of it, then the bytes per device that a
training step needs.  Activations are estimated; `deepseek-jax compile` gives the exact size.

{options.OVERRIDES_HELP}

examples:
  deepseek-jax plan --config configs/v3_671b.py --topology v5p:8x8x16
  deepseek-jax plan --config configs/v3_671b.py --mesh fsdp=64,expert=8 --topology v5p:8x8x8 --all""",
        takes_overrides=True,
    )
    pods.add_options(parser)
    parser.add_argument("--all", action="store_true", help="print a row for every tensor, not for every kind of tensor")


def run(args):
    experiment, topology = pods.experiment(args), pods.topology(args)
    from deepseek_jax.parallel.plan import abstract_mesh, grouped, problems
    from deepseek_jax.pods import memory, text
    from deepseek_jax.train.abstract import describe
    from deepseek_jax.train.refusals import refusals

    mesh = abstract_mesh(experiment.mesh, topology.num_devices)
    tensors, found = memory.of_step(describe(experiment), mesh)
    groups = {tensor.name: [tensor] for tensor in tensors} if args.all else grouped(tensors)
    sizes = ", ".join(f"{name}={size}" for name, size in mesh.shape.items() if size > 1) or "one device"
    print(f"parameters on the mesh {sizes}\n")
    print(text.table([_HEADINGS, *(_row(name, group) for name, group in groups.items())], "lrllr"))
    print(f"\nbytes a device\n\n{text.table(_bytes(found, topology.chip), 'lr')}\n\n{memory.ACTIVATIONS}\n")
    refused, verdict = refusals(experiment, mesh), text.verdict(found.total, topology)
    goes = not refused and all(tensor.divides for tensor in tensors)
    print(verdict if goes else f"cannot run on this mesh; by its bytes alone it {verdict}")
    for warning in refused + problems(mesh, tensors, experiment.model.n_routed_experts):
        print(f"warning: {warning}")


_HEADINGS = ("tensor", "layers", "dimensions / mesh axes", "a device's part", "MiB a device")


def _row(name, group):
    """A row for equal tensors: name, number of layers, one layer's dimensions and mesh axes, a device's part, MiB."""
    from deepseek_jax.parallel.plan import STACKED

    stacked = [tensor.logical[:1] and tensor.logical[0] in STACKED for tensor in group]
    layers = sum(tensor.shape[0] if stack else 1 for tensor, stack in zip(group, stacked))
    tensor, cut = group[0], slice(int(stacked[0]), None)
    dims = zip(tensor.logical[cut], tensor.shape[cut], tensor.mesh_axes[cut])
    where = (f"{logical or '-'} {size}" + (f" / {' x '.join(names)}" if names else "") for logical, size, names in dims)
    part = " x ".join(map(str, tensor.shard[cut]))
    mib = sum(each.bytes_a_device for each in group) / 2**20
    return (
        name,
        str(layers) if any(stacked) else "",
        ", ".join(where),
        part,
        f"{mib:,.1f}" if mib >= 0.1 else f"{mib:.2g}",
    )


def _bytes(found, chip):
    from deepseek_jax.pods.text import amount

    parts = ((field.name, getattr(found, field.name)) for field in dataclasses.fields(found))
    names = {"activations": "activations (estimate)", "averages": "average of the parameters"}
    rows = [(names.get(name, name), amount(size)) for name, size in parts if size]
    return [*rows, ("in all", amount(found.total)), (f"memory of a {chip.name} device", amount(chip.memory))]
