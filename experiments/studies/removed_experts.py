"""What are the shared expert, and each token's best experts, worth to a trained model?

DeepSeekMoE (arXiv:2401.06066, section 4.5): with the shared expert swapped for one more routed one the Pile loss goes
from 1.808 to 2.414; masking the top experts hurts fine-grained ones more than GShard's.  Nothing is trained here beside
the runs of ladder.py.
"""

from deepseek_jax.studies.measures import mask_top, shared_for_routed
from experiments import Study, Variant

GSHARD = {"model.n_routed_experts": 7, "model.num_experts_per_tok": 2, "model.n_shared_experts": 0}
GSHARD |= {"model.moe_intermediate_size": 120}

study = Study(
    base="configs/study_tiny.py",
    budget=819_200,
    seeds=5,
    metric="final/loss",
    margin=0.01,
    variants=[
        Variant("fine-grained, shared"),
        Variant("shared for one more routed", edit=shared_for_routed),
        Variant("best 1 of 16 masked", edit=mask_top(1)),
        Variant("best 2 of 16 masked", edit=mask_top(2)),
        Variant("GShard top-2", GSHARD),
        Variant("GShard, best 1 of 7 masked", GSHARD, edit=mask_top(1)),
    ],
    claim="fine-grained, shared < shared for one more routed; fine-grained, shared < best 1 of 16 masked",
    larger="the same edits of the released checkpoints of DeepSeekMoE-16B and V2-Lite; nothing is trained.",
)
