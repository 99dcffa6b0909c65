"""The schema of augmentation: how far records are changed at each showing.  All is off by default."""

import dataclasses

from deepseek_jax.checking import at_least, choice, fraction
from deepseek_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class ImageAugmentConfig:
    """Applied in this order.  "Up to" means: drawn evenly between that and its opposite."""

    rotate: float = 0.0  # degrees, up to
    scale: float = 0.0  # share that things grow or shrink by, up to
    crop: float = 0.0  # share of height and width that is cut away, at most; the rest fills the picture
    flip: float = 0.0  # chance of left becoming right
    brightness: float = 0.0  # share that grey levels are multiplied up or down by, up to
    noise: float = 0.0  # deviation of Gaussian noise; black to white is 1
    cutout: float = 0.0  # side of a square set to black, as a share of the shorter side (arXiv:1708.04552)
    mixup: float = 0.0  # a of Beta(a, a): the share of another picture blended in (arXiv:1710.09412)
    cutmix: float = 0.0  # the same, as the share of the area pasted from another picture (arXiv:1905.04899)
    keep_box: float = 0.3  # share of a box that must stay visible; below it the box is dropped

    def __post_init__(self):
        at_least("augment.image", self, 0, "rotate", "noise", "mixup", "cutmix")
        fraction("augment.image", self, "scale", "crop", "flip", "brightness", "cutout", "keep_box")
        for name in ("scale", "crop"):
            if getattr(self, name) == 1:
                raise UserError(f"augment.image.{name} is 1, which leaves nothing of the picture; set it below 1.")

    @property
    def moves(self) -> bool:
        return bool(self.rotate or self.scale or self.crop or self.flip)

    @property
    def mixes(self) -> bool:
        return bool(self.mixup or self.cutmix)

    @property
    def active(self) -> bool:
        return _is_changed(self, but="keep_box")


@dataclasses.dataclass(frozen=True)
class TextAugmentConfig:
    """Applied in this order; shares are of the words of a text (Wei and Zou, arXiv:1901.11196)."""

    reorder: float = 0.0  # chance that a sentence has its clauses exchanged: "Although A, B." and "B, although A."
    synonyms: float = 0.0  # words replaced by a synonym, of those that have any
    insert: float = 0.0  # synonyms of words of the text put at random places
    swap: float = 0.0  # pairs of words exchanged
    delete: float = 0.0  # words left out; at least one stays
    thesaurus: str = "auto"  # wordnet, moby, or auto: WordNet where it is installed

    def __post_init__(self):
        fraction("augment.text", self, "reorder", "synonyms", "insert", "swap", "delete")
        choice("augment.text.thesaurus", self.thesaurus, ("auto", "wordnet", "moby"))

    @property
    def active(self) -> bool:
        return _is_changed(self, but="thesaurus")


def _is_changed(section, but: str) -> bool:
    """Whether any setting `but` one, which does nothing by itself, is not its default."""
    settings = [field for field in dataclasses.fields(section) if field.name != but]
    return any(getattr(section, field.name) != field.default for field in settings)


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    image: ImageAugmentConfig = ImageAugmentConfig()
    text: TextAugmentConfig = TextAugmentConfig()
