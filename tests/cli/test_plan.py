"""deepseek-jax plan: how a model would be sharded over a cluster, and the memory that each device would need."""

import re

import pytest

from deepseek_jax.config import MeshConfig
from deepseek_jax.models.counts import census
from deepseek_jax.parallel import topology
from deepseek_jax.parallel.chips import CHIPS, chip_of
from deepseek_jax.parallel.plan import Placement, abstract_mesh, problems
from deepseek_jax.pods.text import amount
from tests.paths import ROOT

TINY = "plan", "--config", str(ROOT / "configs/v3_tiny.py"), "--topology", "v5e:2x4"


def gib(output: str, row: str) -> float:
    number, unit = re.search(rf"^{row} +([\d.,]+) ([KMG]iB)$", output, re.M).groups()
    return float(number.replace(",", "")) / {"KiB": 2**20, "MiB": 2**10, "GiB": 1}[unit]


def test_sharded_dimensions_and_memory_are_shown(run_command):
    status, output, _ = run_command(*TINY, "--mesh", "data=1,fsdp=2,expert=4")
    assert status == 0
    assert re.search(r"feed_forward/experts/gate +4 +experts 16 / expert, embed 256 / fsdp, .* 4 x 128 x 128", output)
    assert re.search(r"attention/q_up +5 +rank 128 / fsdp", output)
    assert "fits: " in output and "of 16.0 GiB a device of v5e:2x4" in output and "warning" not in output


def test_all_shows_a_row_for_each_tensor(run_command):
    output = run_command(*TINY, "--all")[1]
    assert "layers/1-3/feed_forward/experts/gate" in output and "mtp/0/block/attention/out" in output


def test_bytes_are_those_of_the_parameters(run_command):
    """V3 replicated on every device: parameters and gradients in float32, two moments in bfloat16."""
    from deepseek_jax.models.presets import preset

    words = f"--config {ROOT}/configs/v3_671b.py --topology v5p:2x2x2 --mesh data=8,fsdp=1,expert=1".split()
    words.append("--config.train.microbatch_size=15360")
    output = run_command("plan", *words)[1]
    found = census(preset("v3"))
    size = 4 * (found.main.total + found.mtp.total) / 2**30
    for row in ("parameters", "moments", "gradients"):
        assert gib(output, row) == pytest.approx(size, abs=0.01)
    assert "does not fit" in output


def test_small_sizes_are_not_shown_as_zero(run_command):
    output = run_command(*TINY)[1]
    assert re.search(r"^parameters +39\.\d\d MiB$", output, re.M)  # 10.4M parameters of 4 bytes
    assert re.search(r"^norm/scale .* 0\.00098$", output, re.M)  # 256 numbers of 4 bytes, in MiB
    assert not re.search(r" 0\.0+( |$)", output, re.M)


@pytest.mark.parametrize(
    "size, text",
    [(5 * 2**40, "5,120.00 GiB"), (2**30, "1.00 GiB"), (2**27, "0.12 GiB"), (2**26, "64.00 MiB"), (300, "0.29 KiB")],
)
def test_bytes_are_written_in_a_fitting_unit(size, text):
    assert amount(size) == text


def test_microbatches_need_a_second_gradient(run_command):
    whole, parts = (
        run_command(*TINY, "--config.train.batch_size=32", f"--config.train.microbatch_size={size}")[1]
        for size in (32, 16)
    )
    assert gib(parts, "gradients") == pytest.approx(2 * gib(whole, "gradients"), rel=1e-3)


def test_a_chunks_logits_and_their_gradient_take_four_bytes_each(run_command):
    few, many = (
        gib(run_command(*TINY, f"--config.loss.chunk_tokens={count}")[1], r"activations \(estimate\)")
        for count in (64, 128)
    )
    assert many - few == pytest.approx(2 * 4 * 64 * 4096 / 2**30, abs=2e-5)


def test_a_pipeline_shards_all_layers_and_more_microbatches_need_less_activation_memory(run_command):
    words = *TINY, "--mesh", "data=1,stage=2,fsdp=4", "--config.train.batch_size=64", "--config.train.remat=dots"
    few, many = (run_command(*words, f"--config.train.pipeline_microbatches={count}")[1] for count in (2, 16))
    assert re.search(r"feed_forward/experts/gate +3 +experts 16, embed 256 / fsdp x stage, .* 16 x 32 x 128", few)
    assert re.search(r"mtp/0/block/feed_forward/experts/gate +experts 16, embed 256 / fsdp, ", few)
    assert gib(many, r"activations \(estimate\)") < gib(few, r"activations \(estimate\)")


def test_without_a_capacity_factor_the_worst_case_is_planned_for(run_command):
    """A token may choose both experts of one device: two rows there, four times the even load of half a row.

    Then all tokens are gathered, which takes less than sending almost as many rows.
    """
    words = *TINY, "--mesh", "data=1,expert=8", "--config.train.remat=none", "--config.router.capacity_factor"
    even, worst, without, beyond = (
        gib(run_command(*words, factor)[1], r"activations \(estimate\)") for factor in ("1", "3.9", "0", "100")
    )
    assert even < without == beyond < worst


def test_frozen_weights_and_masks_are_counted(run_command):
    """With adapters and pruning masks, buffers hold the frozen model and a byte per mask entry.

    The activations include the weights that are computed from them.
    """
    whole = run_command(*TINY)[1]
    words = "--config.tune.lora.rank=2", "--config.prune.method=magnitude", "--config.prune.sparsity=0.5"
    tuned = run_command(*TINY, *words, "--config.train.ema_decay=0.9")[1]
    assert gib(tuned, "buffers") == pytest.approx(1.2 * gib(whole, "parameters"), rel=0.05)
    assert gib(tuned, "parameters") == gib(tuned, "average of the parameters") < gib(whole, "parameters") / 10
    more = gib(tuned, r"activations \(estimate\)") - gib(whole, r"activations \(estimate\)")
    assert more == pytest.approx(gib(whole, "parameters"), rel=0.25), "what the backward pass keeps of changed weights"
    full = (run_command(*TINY, "--config.train.remat=full", *some)[1] for some in ((), words))
    least, again = (gib(output, r"activations \(estimate\)") for output in full)
    assert again - least < more / 2, "layer by layer; those of the MTP module at once"
    assert re.search(r"^frozen/feed_forward/experts/gate +4 +experts 16, embed 256", tuned, re.M)
    assert re.search(r"^masks/feed_forward/experts/gate +4 +experts 16, embed 256", tuned, re.M)


def test_quantisation_scales_are_sharded_where_the_mesh_divides_their_outputs(run_command):
    words = "--config.quantize.weights=int4", "--config.quantize.group=32"
    output = run_command(*TINY, "--mesh", "data=1,fsdp=8", *words)[1]
    assert re.search(
        r"^rounded/feed_forward/experts/gate/scales .* - 8, expert_mlp 128 / fsdp +16 x 8 x 16 ", output, re.M
    )
    assert re.search(r"^rounded/embedding/scales +vocab 4096 / fsdp, - 8 ", output, re.M)
    assert re.search(r"^rounded/attention/q_up/scales +5 +- 4, heads 4, - 48 ", output, re.M), "4 heads on 8 devices"


def test_more_devices_than_experts_are_refused():
    mesh = abstract_mesh(MeshConfig(expert=8), 8)
    assert problems(mesh, [], 8) == []
    assert problems(mesh, [], 7)[0].startswith("mesh.expert is 8, more than the 7 experts")


def test_bytes_of_an_uneven_shard_are_those_of_the_larger_part():
    assert Placement("out", (5, 3), 4, ("embed", None), (("fsdp",), ()), (2, 1)).bytes_a_device == 3 * 3 * 4


def test_settings_that_do_not_fit_the_mesh_are_warned_of(run_command):
    several = run_command(*TINY, "--topology", "v5e:4x8", "--mesh", "data=1,expert=32")[1]
    assert "mesh.expert is 32, more than the 16 experts" in several
    uneven = run_command(*TINY, "--mesh", "data=2,tensor=4", "--config.model.num_attention_heads=6")[1]
    assert "attention/out has heads = 6, which is not divisible by the 4 devices of mesh.tensor;" in uneven
    assert "\ncannot run on this mesh; by its bytes alone it fits: " in uneven
    odd = run_command(*TINY, "--config.train.batch_size=12")[1]
    assert "train.batch_size is 12, which is not divisible by the 8 devices that share a batch" in odd
    assert "\ncannot run on this mesh; " in odd
    staged = run_command(*TINY, "--mesh", "data=4,stage=2", "--config.train.pipeline_microbatches=4")[1]
    assert "train.batch_size is 8; 4 pipeline microbatches, each shared by 4 devices, need a multiple of 16" in staged
    short = run_command(*TINY, "--mesh", "data=2,stage=4", "--config.train.pipeline_rounds=2")[1]
    assert "4 stages (mesh.stage) times 2 (train.pipeline_rounds) are more parts than the 3 layers" in short
    scored = run_command(*TINY, "--config.eval.batch_size=12")[1]
    assert "eval.batch_size is 12, which is not divisible by the 8 devices that share a batch" in scored
    whole = run_command(*TINY, "--mesh", "data=1,expert=8", "--config.model.intermediate_size=65536")[1]
    assert re.search(r"feed_forward/gate is whole on every device, 64 MiB; mesh.expert could shard it", whole)
    assert "\nfits: " in whole, "wasteful, but it goes"


@pytest.mark.parametrize(
    "words, reason",
    [
        (["--mesh", "data=1,fsdp=3"], "the mesh fsdp=3 needs 3 devices, and there are 8"),
        (["--mesh", "fsdp"], "--mesh fsdp is not a list of axes and sizes"),
        (["--mesh", "fdsp=2"], "has no key mesh.fdsp; did you mean mesh.fsdp"),
        (["--topology", "v9:2x2"], "there is no chip 'v9'"),
        (["--topology", "v5p:2x2"], "must give the 3 sides of its torus, for example v5p:8x8x8"),
        (["--topology", "h100"], "hosts and the GPUs of a host, for example h100:16x8"),
    ],
)
def test_impossible_plans_are_refused_in_one_sentence(run_command, words, reason):
    status, _, error = run_command(*TINY, *words)
    assert status == 2 and reason in error and error.count("\n") == 1


def test_the_number_of_devices_follows_from_the_topology():
    assert topology.parse("v5p:8x8x16").num_devices == 1024
    assert topology.parse("tpu7x:4x4x4").num_devices == 128  # two devices per chip
    assert topology.parse("H100:128x8").name == "h100:128x8"


@pytest.mark.parametrize(
    "kind, name",
    [("TPU v5p", "v5p"), ("TPU v5", "v5p"), ("TPU v5 lite", "v5e"), ("TPU v6 lite", "v6e"), ("TPU7x", "tpu7x")],
)
def test_chips_are_found_by_jaxs_device_kind(kind, name):
    assert chip_of(kind) is CHIPS[name]
    assert chip_of("cpu") is None
