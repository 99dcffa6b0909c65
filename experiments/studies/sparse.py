"""Does sparse attention keep the loss as texts grow longer, and what does it save?

V3.2-Exp (table 1): near parity after a warm-up of the indexer.  Here dense latent attention, DSA over 64 keys, and V4's
window of 32 with CSA and HCA, at 256 and 1,024 tokens, all untrained and at equal tokens a step.
"""

from deepseek_jax.studies.measures import cache_bytes, step_memory
from experiments import Claim, Study, Variant

DSA = {"model.layer_types": ("dsa",), "model.index_n_heads": 4, "model.index_head_dim": 32, "model.index_topk": 64}
V4 = {"model.layer_types": ("csa", "hca"), "model.sliding_window": 32, "model.csa_rate": 4, "model.hca_rate": 16}
V4 |= {"model.index_n_heads": 4, "model.index_head_dim": 32, "model.index_topk": 16, "model.head_dim": 48}
V4 |= {"model.o_groups": 2, "model.o_lora_rank": 64}
SHORT, LONG = (
    {"data.sequence_length": length, "train.batch_size": 1024 // length, "eval.batch_size": 4096 // length}
    for length in (256, 1024)
)

study = Study(
    base="configs/study_tiny.py",
    budget=81_920,
    metric="final/loss",
    margin=0.02,
    variants=[
        Variant("dense 256", SHORT),
        *(Variant(f"{name} 256", SHORT | kind) for name, kind in (("DSA", DSA), ("CSA+HCA", V4))),
        *(Variant(f"{name} 1024", LONG | kind) for name, kind in (("dense", {}), ("DSA", DSA), ("CSA+HCA", V4))),
    ],
    claim="DSA 256 no different from dense 256; DSA 1024 no different from dense 1024; CSA+HCA 1024 <= dense 1024",
    further=[
        Claim("tokens_per_second", "5%", "DSA 1024 > dense 1024; CSA+HCA 1024 > dense 1024"),
        Claim("cache_bytes", "1%", "CSA+HCA 1024 < dense 1024"),
    ],
    measures=[step_memory, cache_bytes],
    larger="27 layers of hidden 2,048 with V3.2 indexers over 2,048 keys, from a dense checkpoint, rows of 32,768.",
)
