"""Writes tensors into one safetensors file, or into numbered ones with an index if they are too large for one."""

from collections.abc import Iterator
from pathlib import Path

from deepseek_jax.convert import safetensors_file
from deepseek_jax.convert.finite import Findings
from deepseek_jax.convert.safetensors_file import Output
from deepseek_jax.convert.tally import Tally
from deepseek_jax.convert.tensors import INDEX, SINGLE
from deepseek_jax.files import write_json
from deepseek_jax.reporting import Report

SHARD_BYTES = 5 * 10**9


def write(directory: Path, outputs: list[Output], shard_bytes: int, report: Report) -> Findings:
    """Writes the tensors and returns which were not finite; `report` counts bytes."""
    tally = Tally(report, "writing", sum(output.nbytes for output in outputs))
    shards = list(_shards(outputs, shard_bytes))
    if len(shards) == 1:
        safetensors_file.write(directory / SINGLE, outputs, tally)
        _remove_all_but(directory, {SINGLE})
    else:
        _write_several(directory, shards, tally)
    return tally.findings


def _write_several(directory, shards, tally):
    file_of = {}
    (directory / INDEX).unlink(missing_ok=True)  # an old index would mix an earlier save's files with these
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        safetensors_file.write(directory / file, shard, tally)
        file_of |= {output.name: file for output in shard}
    index = {"metadata": {"total_size": tally.total}, "weight_map": dict(sorted(file_of.items()))}
    write_json(directory / INDEX, index)
    _remove_all_but(directory, {INDEX, *file_of.values()})


def _remove_all_but(directory: Path, written: set[str]):
    """Removes the files of an earlier save, which would be read instead of this one's."""
    for path in (directory / SINGLE, directory / INDEX, *directory.glob("model-*-of-*.safetensors")):
        if path.name not in written:
            path.unlink(missing_ok=True)


def _shards(outputs, shard_bytes) -> Iterator[list[Output]]:
    shard, size = [], 0
    for output in outputs:
        if shard and size + output.nbytes > shard_bytes:
            yield shard
            shard, size = [], 0
        shard.append(output)
        size += output.nbytes
    yield shard
