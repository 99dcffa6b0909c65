"""Do hyper-connections help more with depth, and does the manifold keep their residual path from growing?

mHC (arXiv:2512.24880): the composite gain of the residual path is about 1.6 with the manifold and 3,000 without, at 27B
and 60 sublayers.  Streams cost time: the loss is compared at equal tokens, and the speed stands beside it.
"""

from deepseek_jax.studies.measures import composite_gain
from experiments import Claim, Study, Variant

FREE, DEEP = {"model.hc_mult": 4, "model.hc_manifold": False}, {"model.num_hidden_layers": 4}

study = Study(
    base="configs/study_tiny.py",
    budget=819_200,
    metric="final/loss",
    margin=0.02,
    variants=[
        Variant("residual"),
        Variant("free", FREE),
        Variant("mHC", {"model.hc_mult": 4}),
        Variant("residual, 4 layers", DEEP),
        Variant("free, 4 layers", DEEP | FREE),
        Variant("mHC, 4 layers", DEEP | {"model.hc_mult": 4}),
    ],
    claim="mHC < residual; mHC, 4 layers < residual, 4 layers",
    further=[Claim("composite_gain", 0.05, "free, 4 layers > mHC, 4 layers; free > mHC")],
    measures=[composite_gain],
    larger="30 and 60 layers of hidden 2,048, bfloat16, 50B tokens.",
)
