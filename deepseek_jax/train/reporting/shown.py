"""The names of each family's metrics, in metrics.jsonl and as shown to a reader."""

import dataclasses

from deepseek_jax.data.compressors import COMPRESSORS


@dataclasses.dataclass(frozen=True)
class Shown:
    """`labels`: the rows of a finished run's table, metric -> (label, format)."""

    loss: str  # the metric that the loss curve shows
    loss_label: str
    score: str  # the evaluation metric that sums up the run, lower is better
    score_label: str
    unit: str  # what throughput counts
    labels: dict[str, tuple[str, str]]
    extra: tuple[tuple[str, str], ...] = ()  # further training curves: (metric, label)
    slow_data: str = ""  # advice against waiting for data, appended to a sentence

    @property
    def speed(self) -> str:
        return f"{self.unit}_per_second"


SHOWN = {
    "language_model": Shown(
        loss="loss/next",
        loss_label="loss, nats a token",
        score="val/bits_per_byte",
        score_label="held-out bits per byte",
        unit="tokens",
        labels={
            "final/loss": ("validation loss, nats a token", ".4f"),
            "final/bits_per_byte": ("validation bits per byte", ".4f"),
            **{f"final/{name}": (f"  {name} on the same bytes", ".4f") for name in COMPRESSORS},
            "final/dropped": ("experts' assignments without room there", ".2%"),
        },
        extra=(("loss/mtp_1", "training, one token further (MTP)"),),
        slow_data="; raise data.workers or data.prefetch",
    ),
    "supervised": Shown(
        loss="loss/fit",
        loss_label="loss",
        score="val/loss",
        score_label="held-out loss",
        unit="records",
        labels={
            "final/loss": ("test loss", ".4f"),
            "final/accuracy": ("test accuracy", ".4f"),
            "final/macro_f1": ("test macro F1", ".4f"),
            "final/calibration_error": ("test calibration error", ".4f"),
            "final/r2": ("test R2", ".4f"),
            "final/mse": ("test mean squared error", ".5g"),
            "final/mae": ("test mean absolute error", ".5g"),
            "final/map50": ("test mAP at IoU 0.5", ".4f"),
            "final/map": ("test mAP at IoU 0.5:0.95", ".4f"),
            "final/logistic regression, accuracy": ("  logistic regression, accuracy", ".4f"),
            "final/TF-IDF + logistic regression, accuracy": ("  TF-IDF + logistic regression, accuracy", ".4f"),
            "final/ridge regression, r2": ("  ridge regression, R2", ".4f"),
            "final/ridge regression, mae": ("  ridge regression, mean absolute error", ".5g"),
            "final/TF-IDF + ridge regression, r2": ("  TF-IDF + ridge regression, R2", ".4f"),
            "final/TF-IDF + ridge regression, mae": ("  TF-IDF + ridge regression, mean absolute error", ".5g"),
            "final/seasonal naive, mae": ("  seasonal naive, mean absolute error", ".5g"),
            "final/seasonal naive, r2": ("  seasonal naive, R2", ".4f"),
        },
    ),
}
