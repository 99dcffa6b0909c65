"""The mesh, the table of sharding rules, and that a run on eight devices computes what one device does."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, PartitionSpec

from deepseek_jax.config import MeshConfig
from deepseek_jax.errors import UserError
from deepseek_jax.parallel import rules
from deepseek_jax.parallel.mesh import axis_sizes, check_batch, check_sequence, make_mesh
from tests.parallel import toys
from tests.parallel.meshes import abstract_mesh


def test_eight_devices_compute_what_one_does(on_devices):
    on_devices(8, toys.adamw)


def test_optimizer_state_may_have_other_shapes_than_the_parameters(on_devices):
    """State with a parameter's shape is sharded like it; factored rows, maxima and histories are replicated."""
    assert on_devices(8, toys.state_of_other_shapes) == [2, 2, 2]


def test_one_device_is_the_trivial_mesh():
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    assert dict(mesh.shape) == dict.fromkeys(("stage", "data", "fsdp", "context", "expert", "tensor"), 1)
    assert set(mesh.axis_types) == {AxisType.Auto}


@pytest.mark.parametrize(
    ("sizes", "there", "message"),
    [
        ({"data": 3, "fsdp": 1}, 1, "the mesh data=3 needs 3 devices, and there is 1: change the sizes"),
        ({"data": -1, "tensor": 2, "fsdp": 3}, 4, "fsdp=3 x tensor=2 needs a multiple of 6 devices, and there are 4:"),
        ({"data": 1}, 8, "the mesh of one device needs 1 device, and there are 8: change the sizes, or set one to -1"),
    ],
)
def test_a_mesh_that_does_not_fit_the_devices_is_refused(sizes, there, message):
    with pytest.raises(UserError, match=message) as refusal:
        axis_sizes(MeshConfig(**sizes), there)
    assert "XLA_FLAGS" not in str(refusal.value)  # the sizes may be meant for another machine


def test_too_few_devices_are_refused_with_the_flag_that_simulates_more():
    count = len(jax.devices())
    with pytest.raises(UserError, match=rf"XLA_FLAGS=--xla_force_host_platform_device_count={2 * count} simulates"):
        make_mesh(MeshConfig(fsdp=2 * count))


def test_two_axes_of_minus_one_are_refused():
    with pytest.raises(UserError, match="mesh.data and mesh.fsdp are both -1"):
        make_mesh(MeshConfig(data=-1, fsdp=-1))


def test_an_axis_of_zero_devices_is_refused():
    with pytest.raises(UserError, match="mesh.tensor is 0"):
        MeshConfig(tensor=0)


def test_a_batch_that_the_mesh_does_not_divide_is_refused():
    with pytest.raises(UserError, match="train.batch_size is 6, .* multiple of 4"):
        check_batch(abstract_mesh(data=2, fsdp=2, tensor=4), "train.batch_size", 6)


def test_a_sequence_that_the_mesh_does_not_divide_is_refused():
    with pytest.raises(UserError, match="data.sequence_length is 100, .*mesh.context.* multiple of 8"):
        check_sequence(abstract_mesh(context=8), "data.sequence_length", 100)


def test_a_dimension_that_its_axis_does_not_divide_is_named():
    shapes = {"attention": {"out": jax.ShapeDtypeStruct((6, 16), "float32")}}
    axes = {"attention": {"out": ("heads", "embed")}}
    with pytest.raises(UserError, match="attention/out has heads = 6, which is not divisible by the 4 devices"):
        rules.shardings(abstract_mesh(fsdp=2, tensor=4), axes, shapes)


def test_the_table_maps_logical_axes():
    assert rules.partition_spec(("layers", "experts", "embed", None)) == PartitionSpec(None, "expert", "fsdp", None)
    assert rules.partition_spec(("vocab", "latent")) == PartitionSpec("tensor", None)
    assert rules.partition_spec(("rank", "heads", "mlp")) == PartitionSpec("fsdp", "tensor", "tensor")
    with pytest.raises(KeyError, match="heds"):
        rules.partition_spec(("heds",))


def constraints(mesh, x, axes):
    """The PartitionSpecs of the sharding constraints that `constrain` adds under a mesh."""
    with jax.sharding.use_abstract_mesh(mesh):
        jaxpr = jax.make_jaxpr(lambda x: rules.constrain(x, axes))(x)
    return [equation.params["sharding"].spec for equation in jaxpr.eqns]


def test_activations_are_constrained_by_their_logical_axes():
    x = jnp.ones((8, 4, 2))
    (spec,) = constraints(abstract_mesh(data=2, fsdp=2, context=2), x, ("batch", "sequence", None))
    assert spec == PartitionSpec(("data", "fsdp"), ("context",), None)  # the expert axis has one device and is left out


def test_one_device_has_nothing_to_constrain():
    assert constraints(abstract_mesh(), jnp.ones((8, 4)), ("batch", "sequence")) == []
    x = jnp.ones((8, 4))
    assert rules.constrain(x, ("batch", "sequence")) is x


def test_constrain_leaves_manual_shard_map_axes_alone():
    mesh, specs = abstract_mesh(data=2, tensor=2), []

    def inner(x):
        specs.extend(constraints(jax.sharding.get_abstract_mesh(), x, ("batch", "heads")))
        return x

    with jax.sharding.use_abstract_mesh(mesh):
        by_tensor = PartitionSpec(None, "tensor")
        jax.make_jaxpr(jax.shard_map(inner, in_specs=by_tensor, out_specs=by_tensor, axis_names={"tensor"}))(
            jnp.ones((8, 4))
        )
        everything = jax.shard_map(inner, in_specs=PartitionSpec(), out_specs=PartitionSpec(), check_vma=False)
        jax.make_jaxpr(everything)(jnp.ones((8, 4)))
    assert specs == [PartitionSpec(("data",), None)]
