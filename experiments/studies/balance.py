"""Does the bias update balance experts at less cost in loss than a balance loss?

V3 (arXiv:2412.19437, section 4.5.3): sequence-wise loss 2.258, bias update 2.253, batch-wise loss 2.253 at 1B.
The base's bias moves by 0.01 a step and not by the large run's 0.001, as there are only 800 steps.
"""

from deepseek_jax.studies.measures import specialisation
from experiments import Claim, Study, Variant

OFF = {"router.bias_update_rate": 0.0, "loss.sequence_balance": 0.0}

study = Study(
    base="configs/study_tiny.py",
    budget=819_200,
    seeds=4,
    metric="final/loss",
    margin=0.02,
    variants=[
        Variant("bias update"),
        Variant("sequence-wise loss", OFF | {"loss.sequence_balance": 1e-2}),
        Variant("batch-wise loss", OFF | {"loss.batch_balance": 1e-2}),
        Variant("nothing", OFF),
        Variant("bias update 0.001", {"router.bias_update_rate": 1e-3}),
        Variant("bias update 0.1", {"router.bias_update_rate": 0.1}),
    ],
    claim="bias update <= sequence-wise loss; no different from batch-wise loss",
    further=[
        Claim("max_violation", 0.1, "bias update < nothing; sequence-wise loss < nothing"),
        Claim("specialisation", "5%", "bias update > sequence-wise loss"),
    ],
    measures=[specialisation],
    larger="24 layers of hidden 2,048 with 64 experts of which 6 are active (V2-Lite), 20B tokens, bias update 0.001.",
)
