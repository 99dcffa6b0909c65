"""The section of an experiment that says which part of its model is trained."""

import dataclasses
import re

from deepseek_jax.checking import at_least, pattern
from deepseek_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters beside matrices: W + alpha / rank * A B (LoRA, arXiv:2106.09685).

    `dora` also learns the norm of each output's weights: magnitude * (W + ...) / |W + ...| (arXiv:2402.09353).
    """

    rank: int = 0  # 0: no adapters
    alpha: float = 16.0
    paths: str = ""  # regular expression: adapt matrices whose path matches; empty: all but embedding, head and routers
    dora: bool = False

    def __post_init__(self):
        at_least("tune.lora", self, 0, "rank")
        pattern("tune.lora.paths", self.paths)

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


@dataclasses.dataclass(frozen=True)
class TuneConfig:
    """Which parameters are trained; the others keep their initial values and have no optimizer state.

    With adapters, only these are trained, and the parameters that match `train` if it is set.
    """

    train: str = ""  # regular expression: train only parameters whose path matches; empty: all
    freeze: str = ""  # regular expression: do not train parameters whose path matches
    last_layers: int = 0  # train only the last N layers and whatever follows them; 0: all
    experts: str = ""  # train only these routed experts, by layer: "1: 3 5 7; 2: 0 4" (`deepseek-jax esft` picks some)
    lora: LoraConfig = LoraConfig()

    def __post_init__(self):
        pattern("tune.train", self.train)
        pattern("tune.freeze", self.freeze)
        at_least("tune", self, 0, "last_layers")
        if self.experts:
            experts_of(self.experts)
            for name in ("train", "freeze", "last_layers"):
                if getattr(self, name):
                    raise UserError(f"tune.experts alone decides which parameters are trained; leave out tune.{name}.")
        if self.lora.rank and not self.train and (self.freeze or self.last_layers):
            raise UserError(
                "tune.freeze and tune.last_layers choose among the model's own parameters, of which tune.lora trains "
                "none but those in tune.train; say which matrices get adapters with tune.lora.paths."
            )

    @property
    def is_on(self) -> bool:
        return bool(self.train or self.freeze or self.last_layers or self.experts or self.lora.rank)


def experts_of(text: str) -> dict[int, list[int]]:
    """{layer: its experts} from "layer: experts; ..."; UserError if it cannot be parsed.

    >>> experts_of("1: 3 5; 2: 0")
    {1: [3, 5], 2: [0]}
    """
    found = {}
    for part in filter(None, (part.strip() for part in text.split(";"))):
        match = re.fullmatch(r"(\d+):((?:\s*\d+)+)", part)
        if not match or int(match[1]) in found:
            raise UserError(f"tune.experts has {part!r}; write each layer once, as in '1: 3 5 7; 2: 0 4'.")
        found[int(match[1])] = sorted(set(map(int, match[2].split())))
    return found
