"""Does the shape of the schedule matter at equal tokens, and does a ramp of the batch?

V2: x0.316 at 60% and 90%; V3: constant, then cosine to a tenth, then two constants; both ramp the batch up.  All here
have the same peak rate and warm-up.
"""

from experiments import Study, Variant

study = Study(
    base="configs/study_tiny.py",
    budget=819_200,
    metric="final/loss",
    margin=0.02,
    variants=[
        Variant("cosine"),
        Variant("V2 steps", {"optimizer.schedule.name": "multi_step"}),
        Variant("V3", {"optimizer.schedule.name": "v3"}),
        Variant("WSD", {"optimizer.schedule.name": "wsd"}),
        Variant(
            "cosine, batch ramp",
            {
                "train.microbatch_size": 2,
                "train.ramp_start": 2,
                "train.ramp_stages": 3,
                "train.ramp_fraction": 0.4,
            },
        ),
    ],
    claim="V2 steps no different from cosine; V3 no different from cosine; WSD no different from cosine; "
    "cosine, batch ramp <= cosine",
    larger="24 layers of hidden 2,048, 100B tokens, batch 2,304 to 9,216 as in V2.",
)
