"""Do finer experts, and a shared one, lower the loss at equal active parameters?

DeepSeekMoE (arXiv:2401.06066, table 1): Pile loss 1.808 for fine-grained experts with a shared one, 1.867 for GShard's
top-2, 2.060 for a dense model.  Every layer has 240 active hidden units; routed layers have 816 (GShard's: 840) in all.
All are routed and balanced as in V3.
"""

from deepseek_jax.studies.measures import specialisation
from experiments import Study, Variant

study = Study(
    base="configs/study_tiny.py",
    budget=819_200,
    seeds=5,
    metric="final/loss",
    margin=0.02,
    variants=[
        Variant("fine-grained, shared"),
        Variant(
            "fine-grained", {"model.n_routed_experts": 17, "model.num_experts_per_tok": 5, "model.n_shared_experts": 0}
        ),
        Variant(
            "GShard top-2",
            {
                "model.n_routed_experts": 7,
                "model.num_experts_per_tok": 2,
                "model.n_shared_experts": 0,
                "model.moe_intermediate_size": 120,
            },
        ),
        Variant("dense", {"model.first_k_dense_replace": 2}),
    ],
    claim="fine-grained, shared < GShard top-2; GShard top-2 < dense; "
    "fine-grained no different from fine-grained, shared",
    measures=[specialisation],
    larger="12 layers of hidden 1,024 with 64 experts of which 8 are active, 2,048 tokens a row, 10B tokens.",
)
