"""Loss curves of tiny models on any mesh of eight host devices, for comparison with those of one device.

    python -m tests.parallel.curves v3 data=8 fsdp=2,expert=4    prints a JSON object: mesh -> curve
    python -m tests.parallel.curves v3+muon data=8               with another optimizer
    python -m tests.parallel.curves v3+noisy data=8              with routers that draw noise
    python -m tests.parallel.curves v4+bfloat16+blocks data=8    activations in bfloat16, queries in small blocks
    python -m tests.parallel.curves v3+longer fsdp=8             rows of 40 tokens, a number that no weight has
    python -m tests.parallel.curves v3+halves data=2,fsdp=4      each step's batch in two microbatches

B batch  S sequence  E experts
"""

import dataclasses
import json
import re
import sys

import jax
import numpy as np

from deepseek_jax.config import Experiment, LossConfig, MeshConfig, OptimizerConfig, ScheduleConfig, TrainConfig
from deepseek_jax.models.attention import sparse, window
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.moe.router import ROUTERS
from deepseek_jax.parallel.mesh import make_mesh
from deepseek_jax.parallel.rules import batch_sharding
from deepseek_jax.pods import collectives as pods
from deepseek_jax.pods import hlo
from deepseek_jax.train.metrics import by_layer
from deepseek_jax.train.optim.optimizer import make_optimizer
from deepseek_jax.train.program import language_model_program
from deepseek_jax.train.state import abstract_state, make_state
from deepseek_jax.train.step import compile_step, make_step
from tests.models.noisy import NoisyRouter
from tests.parallel.order import unordered

STEPS, BATCH, LENGTH, VOCABULARY = 20, 8, 32, 128
LONGER = 40

V3 = ModelConfig(
    vocab_size=VOCABULARY,
    hidden_size=32,
    num_hidden_layers=7,  # six with experts, enough for them to be scanned
    first_k_dense_replace=1,
    intermediate_size=64,
    num_attention_heads=8,
    q_lora_rank=16,
    kv_lora_rank=16,
    qk_nope_head_dim=4,
    qk_rope_head_dim=4,
    v_head_dim=4,
    n_routed_experts=8,
    num_experts_per_tok=2,
    moe_intermediate_size=16,
    n_group=4,
    topk_group=2,
    num_nextn_predict_layers=1,
    initializer_range=0.1,
)
V32 = dataclasses.replace(
    V3, num_hidden_layers=2, layer_types=("dsa",), index_n_heads=2, index_head_dim=8, index_topk=4
)
V4 = dataclasses.replace(
    V3,
    num_hidden_layers=3,
    layer_types=("window", "csa", "hca"),
    first_k_dense_replace=0,
    num_hash_layers=1,
    head_dim=8,
    sliding_window=8,
    csa_rate=4,
    hca_rate=8,
    index_n_heads=2,
    index_head_dim=8,
    index_topk=2,
    o_groups=8,
    o_lora_rank=8,
    hc_mult=2,
    scoring_func="sqrtsoftplus",
    swiglu_limit=10.0,
    n_group=1,
    topk_group=1,
    num_nextn_predict_layers=0,
)
V4_MTP = dataclasses.replace(  # enough pairs to be scanned, so the MTP module communicates beside a loop that does too
    V4, num_hidden_layers=12, layer_types=("csa", "hca") * 6, num_hash_layers=0, num_nextn_predict_layers=1
)
MODELS = {"v3": V3, "v32": V32, "v4": V4, "v4mtp": V4_MTP}


def experiment(model: ModelConfig, optimizer: str = "adamw", dtype: str = "float32", seed: int = 0) -> Experiment:
    """A run of `model` with balance losses weighted strongly enough for errors in their gradients to show."""
    return Experiment(
        model=model,
        optimizer=OptimizerConfig(name=optimizer, peak_lr=1e-3, schedule=ScheduleConfig(name="constant")),
        loss=LossConfig(sequence_balance=0.01, z_loss=1e-4, chunk_tokens=16),
        train=TrainConfig(steps=STEPS, batch_size=BATCH, dtype=dtype, seed=seed),
    )


def packed(step: int, batch: int = BATCH, length: int = LENGTH) -> dict[str, np.ndarray]:
    """A batch of arrays [B S] for this step: rows of documents of random length, some with padding at the end."""
    rng = np.random.default_rng(step)
    rows = {name: np.zeros((batch, length), np.int32) for name in ("tokens", "segment_ids", "positions", "domain_ids")}
    for row in range(batch):
        start, segment = 0, 1
        while (room := length - start) > 2:
            size = int(rng.integers(2, room + 1))
            piece = slice(start, start + size)
            rows["tokens"][row, piece] = rng.integers(1, VOCABULARY, size)
            rows["segment_ids"][row, piece], rows["positions"][row, piece] = segment, np.arange(size)
            start, segment = start + size, segment + 1
    return rows


def curve(
    experiment: Experiment, mesh: dict[str, int], steps: int = STEPS, length: int = LENGTH, microbatches: int = 1
) -> dict[str, list]:
    """Trains and returns loss, grad_norm and load of each step, the step's collectives, and how often those across the

    axis data run.  The loads of all layers are concatenated.
    """
    state, step, mesh = start(experiment, mesh)
    batches = [
        jax.device_put(
            {name: rows.reshape(microbatches, -1, length) for name, rows in rows.items()},
            batch_sharding(mesh, leading=1),
        )
        for rows in (packed(number, experiment.train.batch_size, length) for number in range(steps))
    ]
    step = step.lower(state, batches[0]).compile()
    assert not (mixed := unordered(step.as_text())), f"what may meet what on host devices: {mixed}"
    found = {"loss": [], "grad_norm": [], "load": [], "collectives": collectives(step.as_text())}
    found["across data"] = across_data(step.as_text(), mesh)
    for batch in batches:
        state, measured = step(state, batch)
        found["loss"].append(float(measured["loss/total"]))
        found["grad_norm"].append(float(measured["grad_norm"]))
        loads = by_layer(jax.device_get(measured["router/load"])).values()
        found["load"].append([float(count) for load_E in loads for count in load_E])
    return found


def losses(experiment: Experiment, mesh: dict[str, int], steps: int = STEPS) -> list[float]:
    return curve(experiment, mesh, steps)["loss"]


def start(experiment: Experiment, mesh: dict[str, int]):
    """(state, compiled step, mesh); `mesh` {} is one device."""
    mesh = make_mesh(MeshConfig(**{"data": 1} | mesh), jax.devices() if mesh else jax.devices()[:1])
    program = language_model_program(experiment, np.array([4.0]))
    optimizer = make_optimizer(experiment.optimizer, experiment.train.steps, program.axes)
    abstract = abstract_state(program, optimizer, mesh, ema=False)
    step = compile_step(make_step(program, optimizer, experiment), abstract)
    return make_state(program, optimizer, abstract), step, mesh


def collectives(hlo: str) -> dict[str, list[str]]:
    """The shapes, as "f32[8,32]", of the results of each kind of collective in a compiled program."""
    kinds = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
    found = {}
    for results, kind in re.findall(rf"= (.*?) ({kinds})(?:-start)?\(", hlo):
        found.setdefault(kind, []).extend(re.findall(r"\w+\[[\d,]*\]", results))
    return found


def across_data(text: str, mesh: jax.sharding.Mesh) -> list[int]:
    """How often a step runs each collective between devices that differ in their place along the axis data."""
    apart = mesh.size // mesh.shape["stage"] // mesh.shape["data"]  # of the axes only stage comes before data
    places = [
        ({device // apart % mesh.shape["data"] for device in each.group}, each.times)
        for each in pods.collectives(hlo.parse(text), mesh.size)
    ]
    return [times for place, times in places if len(place) > 1]


def read(mesh: str) -> dict[str, int]:
    """Parses a mesh such as "fsdp=2,expert=4" into sizes by axis; "one" is {}."""
    pairs = (each.split("=") for each in mesh.split(",")) if mesh != "one" else ()
    return {axis: int(size) for axis, size in pairs}


def attend_in_small_blocks():
    """Lowers the block sizes of attention, as sequences this short would otherwise be a single block."""
    window.QUERIES_A_TURN = 16
    sparse.SparseLatentAttention.by_mask.__defaults__ = (None, 8)
    sparse.SparseLatentAttention.by_gathering.__defaults__ = (sparse.pick_causally, 8)


def on_meshes(model: str, *meshes: str) -> dict:
    """{mesh: its curve}; `model` is a name in MODELS, with options as above."""
    name, *options = model.split("+")
    if "blocks" in options:
        attend_in_small_blocks()
    if "noisy" in options:
        ROUTERS["moe"] = NoisyRouter
    dtype = "bfloat16" if "bfloat16" in options else "float32"
    seed = 1 if "noisy" in options else 0  # with 0 two scores are so close in the last step that rounding decides
    given = experiment(MODELS[name], "muon" if "muon" in options else "adamw", dtype, seed)
    rows = {"length": LONGER if "longer" in options else LENGTH, "microbatches": 2 if "halves" in options else 1}
    return {mesh: curve(given, read(mesh), **rows) for mesh in meshes}


if __name__ == "__main__":
    print(json.dumps(on_meshes(*sys.argv[1:])))
