"""How many tokens, and how much time, does Muon save against AdamW?

V4 has Muon for its matrices, by ten Newton-Schulz steps in two stages, with updates of root mean square 0.18, so that
AdamW's learning rate serves it (arXiv:2502.16982: half the FLOPs to the same loss).  SGD has momentum 0.9.
"""

from deepseek_jax.studies.measures import tokens_to
from experiments import Claim, Study, Variant

study = Study(
    base="configs/study_tiny.py",
    budget=819_200,
    metric="final/loss",
    margin=0.02,
    variants=[
        Variant("AdamW"),
        Variant("Muon", {"optimizer.name": "muon"}),
        Variant("Muon, rate 0.01", {"optimizer.name": "muon", "optimizer.peak_lr": 0.01}),
        Variant("SGD, rate 0.3", {"optimizer.name": "sgd", "optimizer.peak_lr": 0.3}),
        Variant("SGD, rate 1", {"optimizer.name": "sgd", "optimizer.peak_lr": 1.0}),
    ],
    claim="Muon < AdamW; AdamW < SGD, rate 1",
    further=[Claim("tokens_to_4.5", "5%", "Muon < AdamW"), Claim("seconds_to_4.5", "5%", "Muon < AdamW")],
    measures=[tokens_to(4.5)],
    larger="24 layers of hidden 2,048, 20B tokens, each optimizer at the rate that a sweep such as lr_width.py finds.",
)
