"""What does training in FP8 cost in loss?

V3 (arXiv:2412.19437, section 3.3 and figure 10): a relative error of the loss below 0.25% against bfloat16.  FP8 is
simulated here: activations and gradients in tiles of 1 x 128, weights in blocks of 128 x 128, sums in float32.  The
speeds are those of the simulation and say nothing.
"""

from experiments import Study, Variant

study = Study(
    base="configs/study_tiny.py",
    budget=819_200,
    seeds=4,
    metric="final/loss",
    margin="0.25%",
    variants=[
        Variant("float32"),
        Variant("FP8", {"arithmetic.kind": "fp8"}),
        Variant("bfloat16", {"train.dtype": "bfloat16"}),
    ],
    claim="FP8 no different from float32; FP8 no different from bfloat16",
    larger="16B on 1T tokens, as in V3's appendix B.1, on GPUs whose products take FP8.",
)
