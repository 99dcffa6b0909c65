"""What a family's numbers are called, in metrics.jsonl and to a reader."""

import dataclasses

from deepseek_jax.data.baseline import COMPRESSORS


@dataclasses.dataclass(frozen=True)
class Shown:
    """`labels`: what the table of a finished run shows, a metric's name -> (its label, its format)."""

    loss: str  # the metric that the loss curve shows
    loss_label: str
    score: str  # the metric of evaluations that stands for the run, lower is better
    score_label: str
    unit: str  # what throughput counts
    labels: dict[str, tuple[str, str]]
    extra: tuple[tuple[str, str], ...] = ()  # further training curves: (metric, label)

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
        },
        extra=(("loss/mtp_1", "training, one token further (MTP)"),),
    ),
}
