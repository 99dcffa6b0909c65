"""Checkpoints larger than memory: tensors are handled one at a time, and devices read only their shards."""

import dataclasses
import json
import shutil
import weakref

import numpy as np
import pytest
from safetensors.numpy import load_file

from deepseek_jax.convert import huggingface, shards
from deepseek_jax.convert.entry import Entry
from deepseek_jax.convert.safetensors_file import Output, entries, write
from deepseek_jax.convert.tally import Tally
from deepseek_jax.convert.tensors import INDEX, Tensors
from deepseek_jax.reporting import no_report
from tests.convert import placed
from tests.paths import GOLDENS

V3 = GOLDENS / "v3"


@pytest.fixture
def most_alive(monkeypatch):
    """A list with one number: the peak bytes of tensors, as read from files, that were alive at the same time."""
    alive, most, read = {}, [0], Entry.read

    def watched(entry):
        array = read(entry)
        alive[id(array)] = array.nbytes
        weakref.finalize(array, alive.pop, id(array))
        most[0] = max(most[0], sum(alive.values()))
        return array

    monkeypatch.setattr(Entry, "read", watched)
    return most


@pytest.fixture
def sharded_by_file(tmp_path):
    config = huggingface.read_config(V3)
    huggingface.save(tmp_path / "sharded", config, *huggingface.load(V3, config), shard_bytes=10**5)
    return tmp_path / "sharded"


def largest(directory):
    tensors = Tensors(directory)
    return max(tensors[name].nbytes for name in tensors.names)


def test_loading_holds_one_tensor_at_a_time(sharded_by_file, most_alive):
    huggingface.load(sharded_by_file, huggingface.read_config(sharded_by_file))
    assert 0 < most_alive[0] <= 2 * largest(V3)  # one may be read before the last is freed


def test_rewriting_holds_one_tensor_at_a_time_and_changes_no_byte(sharded_by_file, tmp_path, most_alive):
    huggingface.rewrite(sharded_by_file, tmp_path / "whole")
    assert 0 < most_alive[0] <= 2 * largest(V3)
    written, original = load_file(tmp_path / "whole/model.safetensors"), load_file(V3 / "model.safetensors")
    assert written.keys() == original.keys()
    for name in original:
        assert written[name].tobytes() == original[name].tobytes(), name


def test_each_device_reads_its_shards_and_saving_gathers_them(on_devices):
    on_devices(4, placed.read_and_saved, str(V3))


def test_a_tensor_shared_by_devices_is_read_once(on_devices):
    """FP8 matrices and their scales, sharded in various ways, are each read and decoded only once."""
    on_devices(8, placed.read_once, str(GOLDENS / "v3_fp8"))


@pytest.mark.slow
def test_a_process_grows_by_no_more_than_the_largest_tensor(on_devices, tmp_path):
    """Rewriting 400 MB of weights, of which the largest matrix has 4 MB, needs about that matrix in both dtypes."""
    small, large, layers = V3.parent / "v1", tmp_path / "checkpoint", 24
    shapes = {"model.embed_tokens.weight": (2048, 512), "lm_head.weight": (2048, 512), "model.norm.weight": (512,)}
    for prefix in (f"model.layers.{number}" for number in range(layers)):
        shapes |= {f"{prefix}.self_attn.{part}_proj.weight": (512, 512) for part in "qkvo"}
        shapes |= {f"{prefix}.mlp.{part}_proj.weight": (2048, 512) for part in ("gate", "up")}
        shapes |= {f"{prefix}.mlp.down_proj.weight": (512, 2048)}
        shapes |= {f"{prefix}.{norm}_layernorm.weight": (512,) for norm in ("input", "post_attention")}
    sizes = {"hidden_size": 512, "intermediate_size": 2048, "vocab_size": 2048, "num_hidden_layers": layers}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 64}
    values = json.loads((small / "config.json").read_text()) | sizes | heads
    large.mkdir()
    (large / "config.json").write_text(json.dumps(values | {"attention_bias": False, "mlp_bias": False}))
    float32 = np.dtype(np.float32)
    outputs = [Output(name, float32, shape, (lambda of=shape: np.ones(of, float32),)) for name, shape in shapes.items()]
    write(large / "model.safetensors", outputs, Tally(no_report, "writing", 0))
    growth = on_devices(1, placed.growth, str(small), str(large), str(tmp_path))
    largest, total = max(output.nbytes for output in outputs), sum(output.nbytes for output in outputs)
    assert growth < 4 * largest < total / 20


def test_save_progress_counts_bytes_written(tmp_path):
    config, told = huggingface.read_config(V3), []
    trees = huggingface.load(V3, config)
    huggingface.save(tmp_path / "out", config, *trees, report=lambda *counts: told.append(counts))
    header = 8 + int.from_bytes((tmp_path / "out/model.safetensors").read_bytes()[:8], "little")
    written = (tmp_path / "out/model.safetensors").stat().st_size - header
    assert told[-1] == ("writing", written, written) and sorted(told) == told


def outputs(*sizes: int) -> list[Output]:
    """Output tensors of these sizes in bytes."""
    return [
        Output(f"t{number}", np.dtype(np.uint8), (size,), (lambda size=size: np.ones(size, np.uint8),))
        for number, size in enumerate(sizes)
    ]


def test_files_are_filled_up_and_only_a_single_larger_tensor_exceeds_the_limit(tmp_path):
    shards.write(tmp_path, outputs(40, 8, 8, 8, 4, 30), 16, no_report)
    file_of = json.loads((tmp_path / INDEX).read_text())["weight_map"]
    assert [int(file_of[f"t{number}"][6:11]) for number in range(6)] == [1, 2, 2, 3, 3, 4]
    assert len(list(tmp_path.glob("*.safetensors"))) == 4


@pytest.mark.parametrize("length", range(1, 9))
def test_tensors_are_aligned_to_their_item_size(tmp_path, length):
    """Whatever precedes them: the header's length varies with the length of the names."""
    number = Output("n" * length, np.dtype(np.float32), (1,), (lambda: np.ones(1, np.float32),))
    write(tmp_path / "a.safetensors", [*outputs(3), number], Tally(no_report, "writing", 7))
    found = dict(entries(tmp_path / "a.safetensors"))
    assert found[number.name].start % 4 == 0 and found[number.name].read() == 1


@pytest.mark.parametrize("name", ["v3_fp8", "v4_quant/official"])
def test_shapes_are_known_before_a_tensor_is_read(name):
    tensors = Tensors(V3.parent / name)
    assert all(tensors.shape(each) == tensors[each].shape for each in tensors.names)


def test_a_failed_save_leaves_no_index_of_the_one_before(tmp_path):
    shards.write(tmp_path, outputs(16, 16), 16, no_report)
    broken = dataclasses.replace(outputs(16)[0], pieces=(lambda: 1 // 0,))
    with pytest.raises(ZeroDivisionError):
        shards.write(tmp_path, [*outputs(16), broken], 16, no_report)
    assert not (tmp_path / INDEX).exists()


def test_a_loaded_model_does_not_need_its_source_files(tmp_path):
    """After loading, nothing more is read from the source directory."""
    source = shutil.copytree(V3, tmp_path / "source")
    config = huggingface.read_config(source)
    trees = huggingface.load(source, config)
    shutil.rmtree(source)
    huggingface.save(tmp_path / "out", config, *trees)
    assert Tensors(tmp_path / "out").names == Tensors(V3).names
