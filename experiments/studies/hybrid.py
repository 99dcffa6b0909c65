"""What does each part of the hybrid network give?

MNIST-5k by a small network, with one part left out at a time: convolution, recurrence, attention, augmentation,
dropout, early stopping.
"""

from experiments import Study, Variant

study = Study(
    base="configs/hybrid_small.py",
    equal="steps",
    budget=400,
    metric="final/accuracy",
    margin=0.005,
    variants=[
        Variant("all parts"),
        Variant("no convolution", {"model.convolution.filters": ()}),
        Variant("no recurrence", {"model.recurrent.kind": "none"}),
        Variant("no attention", {"model.attention.num_heads": 0}),
        Variant("no augmentation", {f"augment.image.{name}": 0.0 for name in ("rotate", "scale", "crop")}),
        Variant("no dropout", {"model.dropout": 0.0}),
        Variant("no early stopping", {"stopping.patience": 0}),
    ],
    claim="all parts > no convolution; all parts > no recurrence; all parts > no augmentation",
    larger="all of MNIST or Fashion-MNIST by configs/hybrid_mnist.py, 20 epochs, 5 seeds.",
)
