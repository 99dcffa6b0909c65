"""Does predicting further tokens help the main loss, and how often are its drafts right?

V3 (arXiv:2412.19437, table 4 and section 5.4.3): bits per byte stay as they are (0.729), the second token is right 85
to 90% of the time, 1.8 times the tokens a second.
"""

from deepseek_jax.studies.measures import acceptance
from experiments import Claim, Study, Variant

study = Study(
    base="configs/study_tiny.py",
    budget=819_200,
    seeds=4,
    metric="final/loss",
    margin=0.02,
    variants=[
        Variant("MTP 0"),
        Variant("MTP 1", {"model.num_nextn_predict_layers": 1}),
        Variant("MTP 2", {"model.num_nextn_predict_layers": 2}),
    ],
    claim="MTP 1 no different from MTP 0; MTP 2 no different from MTP 0",
    further=[Claim("acceptance", 0.02, "MTP 1 >= 0.85"), Claim("decode_speed_up", 0.05, "MTP 1 > 1")],
    measures=[acceptance],
    larger="27 layers of hidden 2,048 (V2-Lite) with V3 routing, 100B tokens; acceptance on code and prose apart.",
)
