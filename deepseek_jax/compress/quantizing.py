"""Quantisation after training: the run directory, or the release, of a model in few bits."""

from pathlib import Path

from rich.console import Console

from deepseek_jax.compress import release as released
from deepseek_jax.compress import source
from deepseek_jax.compress.calibrate import largest_inputs
from deepseek_jax.compress.config import ArithmeticConfig, QuantizeConfig
from deepseek_jax.compress.measure import Measure
from deepseek_jax.compress.source import Source
from deepseek_jax.convert import beside
from deepseek_jax.errors import UserError


def quantize(
    given: Source, target: Path, config: QuantizeConfig, activations: str | None, batches: int, console: Console
):
    """Writes a run directory; where `activations` are rounded too, `batches` training batches say how large they are.

    Ranges are one a path, the largest of all layers of its stack.  Experts' down projections have none, but the largest
    number of each row: what flows into them is weighted before the product or after, by the way that is fastest.
    """
    sections = {"quantize": config}
    if activations:
        largest = largest_inputs(Measure(given, console), given, batches)
        ranges = tuple(f"{path}={each:.6g}" for path, each in largest.items() if not path.endswith("experts/down"))
        sections["arithmetic"] = ArithmeticConfig(kind=activations, paths=config.paths, ranges=ranges)
    source.write(target, source.asking_for(given, **sections))


def release(given: Source, target: Path, config: QuantizeConfig):
    """Writes safetensors and config.json as DeepSeek publishes them."""
    if given.experiment.family != "language_model":
        raise UserError(f"{given.directory} holds a hybrid network; DeepSeek's release format is for language models.")
    released.save(target, given.model, given.params, given.buffers, config.weights)
    beside.carry(given.directory, target)
