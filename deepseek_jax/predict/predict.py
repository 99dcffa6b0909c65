"""Predictions of a trained hybrid network for new inputs, scaled and tokenized like its training data.

B inputs  K classes  N numbers
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from deepseek_jax import compiling
from deepseek_jax.data.sets.dataset import as_unit
from deepseek_jax.data.sets.vocabulary import encode
from deepseek_jax.data.tokenizer import TOKENIZER, Tokenizer
from deepseek_jax.models import tree
from deepseek_jax.models.hybrid.config import HEADS
from deepseek_jax.tasks.detection import FOUND
from deepseek_jax.train.checkpoints import dataset_record
from deepseek_jax.train.checkpoints.restore import restore_model
from deepseek_jax.train.supervised.program import answer

MOST = 256  # inputs per batch: memory grows with it


@dataclasses.dataclass(frozen=True)
class Predictor:
    """`known.model.input` says which kind of inputs it takes: see `predict`."""

    known: dataset_record.DatasetRecord
    tokenizer: Tokenizer | None
    model: tree.Parts

    def predict(self, inputs: np.ndarray | Sequence[str]) -> list[dict]:
        """A prediction for each of B inputs: {"class", "probability"}, {"numbers"} or {"boxes"}, ready for JSON.

        inputs: texts; images [B H W C] in [0, 1], or uint8; tables [B C]; series [B S 1], absolute or relative to their
        last value; the forecast then is too.
        """
        if not self.known.season or not len(inputs):
            return self._predict(inputs)
        windows = np.asarray(inputs, np.float64)
        last_B = windows[:, -1, 0]
        found = self._predict(windows - last_B[:, None, None])  # relative to the last, as series.windows does
        return [{"numbers": [last + x for x in each["numbers"]]} for each, last in zip(found, last_B.tolist())]

    def _predict(self, inputs) -> list[dict]:
        lengths = None
        if self.known.model.input == "text":
            inputs, lengths = encode(list(inputs), self.tokenizer, self.known.model.length)
        elif getattr(inputs, "dtype", None) != np.uint8:
            inputs = np.asarray(inputs, np.float32)
        parts = [self._answers(inputs, lengths, start) for start in range(0, len(inputs), MOST)]
        return self._named(jax.tree.map(lambda *arrays: np.concatenate(arrays)[: len(inputs)], *parts)) if parts else []

    def _answers(self, inputs, lengths, start: int):
        """Predictions for MOST inputs from `start` on; a short last batch repeats the last input, to keep its shape."""
        rows = np.minimum(np.arange(start, start + min(MOST, len(inputs))), len(inputs) - 1)
        graphdef, params, buffers = self.model
        chosen = inputs[rows]
        if lengths is None:  # scaled batch by batch: standardising takes 28 bytes per number
            chosen = self.known.scaling.inputs(as_unit(chosen) if self.known.model.input == "image" else chosen)
        outputs, _ = _run(graphdef, params, buffers, chosen, None if lengths is None else lengths[rows])
        return jax.device_get(answer(outputs, self.known.model.head))

    def _named(self, found) -> list[dict]:
        names, kind = self.known.class_names, HEADS[self.known.model.head]
        if kind == "classes":
            return [{"class": names[row.argmax()], "probability": round(float(row.max()), 4)} for row in found]
        if kind == "numbers":
            return [{"numbers": [float(x) for x in row]} for row in self.known.scaling.undo_targets(found)]
        return [{"boxes": _boxes(*picture, names)} for picture in zip(*found)]


@compiling.jit(static_argnums=0)
def _run(graphdef, params, buffers, inputs, lengths):
    return tree.merge(graphdef, params, buffers)(inputs, lengths)


def _boxes(boxes, classes, scores, names) -> list[dict]:
    """The boxes with a score of at least FOUND, best first; y0 x0 y1 x1 in fractions of the picture."""
    return [
        {"box": [round(float(side), 4) for side in box], "class": names[label], "score": round(float(score), 4)}
        for box, label, score in zip(boxes, classes, scores)
        if score >= FOUND
    ]


def load_predictor(workdir: str | Path, step: int | None = None) -> Predictor:
    """The predictor of a run directory's newest intact checkpoint, or that of `step`; UserError if there is none."""
    workdir = Path(workdir)
    known = dataset_record.read(workdir)
    trained = restore_model(workdir, step)
    tokenizer = Tokenizer(workdir / TOKENIZER) if known.model.input == "text" else None
    return Predictor(known, tokenizer, trained.model)
