"""What does each part of the hybrid network give?

MNIST-5k by convolution, recurrence and attention, with one part left out at a time, at a quarter of the records that
configs/hybrid_mnist.py trains on.
"""

from experiments import Study, Variant

study = Study(
    base="configs/hybrid_mnist.py",
    equal="records",
    budget=9_600,
    metric="final/accuracy",
    margin=0.01,
    variants=[
        Variant("all parts"),
        Variant("no convolution", {"model.convolution.filters": ()}),
        Variant("no recurrence", {"model.recurrent.kind": "none"}),
        Variant("no attention", {"model.attention.num_heads": 0}),
        Variant("no augmentation", {f"augment.image.{name}": 0.0 for name in ("rotate", "scale", "crop")}),
        Variant("no dropout", {"model.dropout": 0.0}),
    ],
    claim="all parts > no convolution; all parts > no recurrence; all parts > no attention",
    larger="all of MNIST or Fashion-MNIST, 20 epochs, 5 seeds.",
)
