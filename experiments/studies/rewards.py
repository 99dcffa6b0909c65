"""Does a small model learn more from rewards for its own answers, or from a teacher's reasoning?

R1 (arXiv:2501.12948, section 4.1 and table 6): distilled from R1's answers, Qwen-32B solves 72.6% of AIME 2024, and
47.0% after reinforcement learning.  Here the teacher is the rule for adding digit by digit, and both begin with
configs/sums_tiny.py, which must have been trained into runs/sums_tiny.
"""

from experiments import Study, Variant
from experiments.parts.sums import right

study = Study(
    base="configs/grpo_tiny.py",
    equal="seconds",
    budget=60,
    metric="right",
    margin=0.02,
    variants=[
        Variant("rewards"),
        Variant("reasoning", {"plugins": ("experiments.parts.sums",), "optimizer.peak_lr": 1e-3}),
        Variant("neither", {"plugins": ("experiments.parts.sums",), "optimizer.peak_lr": 0.0}),
    ],
    claim="rewards > neither; reasoning > rewards",
    measures=[right],
    larger="V3 from a cold start of thousands of worked answers, on mathematics and code whose answers can be checked.",
)
