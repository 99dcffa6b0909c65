"""The settings of a supervised task's loss."""

import dataclasses

from deepseek_jax.checking import at_least, choice
from deepseek_jax.errors import UserError

# The objectives for each kind of answer, and which of the settings that not all of them use each uses.
OF_CLASSES = {"cross_entropy": (), "focal": ("focal_gamma",)}
OF_NUMBERS = {"mse": (), "mae": (), "huber": ("huber_delta",)}
OF_BOXES = {"boxes": ("size_weight", "offset_weight")}
OBJECTIVES = OF_CLASSES | OF_NUMBERS | OF_BOXES


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """What training minimises; `l1` and `l2` are part of the loss, optimizer.weight_decay is decoupled from it."""

    name: str = "cross_entropy"  # cross_entropy, focal (classes); mse, mae, huber (numbers); boxes
    label_smoothing: float = 0.0  # share of each label that is spread over all classes
    focal_gamma: float = 2.0
    huber_delta: float = 1.0  # in standard deviations of the target where it is standardised
    size_weight: float = 1.0  # weight of the loss of a box's height and width; that of the centres' heat map is 1
    offset_weight: float = 1.0  # weight of the loss of a centre's offset inside its cell
    l1: float = 0.0
    l2: float = 0.0

    def __post_init__(self):
        choice("objective.name", self.name, OBJECTIVES)
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"objective.label_smoothing is {self.label_smoothing}; it must be from 0 to below 1.")
        if self.label_smoothing and self.name not in OF_CLASSES:
            raise UserError(
                f"objective.label_smoothing is {self.label_smoothing}, but {self.name} is not a loss of classes; set "
                f"it to 0, or objective.name to {' or '.join(OF_CLASSES)}."
            )
        at_least("objective", self, 0, "focal_gamma", "size_weight", "offset_weight", "l1", "l2")
        if self.huber_delta <= 0:
            raise UserError(f"objective.huber_delta is {self.huber_delta}; it must be above 0.")
