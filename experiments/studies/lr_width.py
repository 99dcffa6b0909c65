"""Which learning rate transfers from narrow models to wide ones?

Three widths of model would take a rate each; a rate that is good at all of them can be found on the narrow one.
"""

from experiments import Sweep


def width(size: int) -> dict:
    return {
        "model.hidden_size": size,
        "model.intermediate_size": 5 * size // 2,
        "model.moe_intermediate_size": size // 2,
        "model.q_lora_rank": size // 2,
    }


study = Sweep(
    base="configs/study_tiny.py",
    budget=81_920,
    search={
        "width": {str(size): width(size) for size in (32, 64, 128)},
        "optimizer.peak_lr": (1e-3, 3e-3, 1e-2, 3e-2),
    },
    across="width",
    larger="widths 256 to 2,048 over eight rates, 1B tokens each, halving at 10% and 25% of the steps.",
)
