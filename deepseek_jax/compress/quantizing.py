"""Post-training quantisation: writes the model as a run directory or a release, and measures how the loss changes."""

import dataclasses
from pathlib import Path

from rich.console import Console

from deepseek_jax.checking import require_family
from deepseek_jax.compress import release as released
from deepseek_jax.compress import source
from deepseek_jax.compress.calibrate import largest_inputs
from deepseek_jax.compress.config import ArithmeticConfig, QuantizeConfig
from deepseek_jax.compress.measure import Measure
from deepseek_jax.convert import beside
from deepseek_jax.reporting import Report, no_report
from deepseek_jax.train.checkpoints import any_checkpoint
from deepseek_jax.train.checkpoints.restore import Trained


def quantize(
    given: Trained,
    target: Path,
    config: QuantizeConfig,
    activations: str | None = None,
    measure: Measure | None = None,
    batches: int = 0,
):
    """Writes a run directory of the model quantised as `config` says.

    `activations` ("int8" or None): also round activations, over ranges found on `batches` training batches of
    `measure`.  There is one range per path, the largest over all layers of its stack.  Experts' down projections get
    none and use each row's largest magnitude: their inputs may include the routing weight or not, whichever is faster.
    """
    sections = {"quantize": config}
    if activations:
        largest = largest_inputs(measure, given, batches)
        ranges = tuple(f"{path}={each:.6g}" for path, each in largest.items() if not path.endswith("experts/down"))
        sections["arithmetic"] = ArithmeticConfig(kind=activations, paths=config.paths, ranges=ranges)
    source.write(target, source.with_sections(given, **sections))


def release(given: Trained, target: Path, config: QuantizeConfig, report: Report = no_report):
    """Writes safetensors and config.json in DeepSeek's release format; `report` counts bytes written."""
    instead = "DeepSeek's release format is for language models"
    require_family("language_model", given.experiment.family, given.directory, instead)
    released.save(target, given.config, given.params, given.buffers, config.weights, report)
    beside.carry(given.directory, target)


def print_loss(measure: Measure, given: Trained, made: Path, batches: int, console: Console):
    """Prints the loss of the model written to `made` on `batches` validation batches, beside that of `given`."""
    written = any_checkpoint.read(made)
    # A release does not say on what it was trained, so the given model's data is used.
    experiment = dataclasses.replace(given.experiment, arithmetic=written.experiment.arithmetic)
    after = dataclasses.replace(given, experiment=experiment, params=written.params, buffers=written.buffers)
    of_after = measure if experiment.arithmetic == given.experiment.arithmetic else Measure(after)
    scores = measure.scores(given.params, given.buffers, batches, "val")
    if not scores:
        console.print("nothing is held out to measure the loss on: data.held_out or dataset.val comes to no record")
        return
    lost = of_after.scores(after.params, after.buffers, batches, "val")["loss"]
    console.print(f"validation loss {lost:.4f}, before {scores['loss']:.4f}")
