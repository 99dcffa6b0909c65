"""The settings of augmentation: how much records are changed at each showing.  All of it is off by default."""

import dataclasses

from deepseek_jax.checking import at_least, choice, fraction
from deepseek_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class ImageAugmentConfig:
    """Image augmentations; "up to x": drawn uniformly from -x to x.

    The first four form one geometric move; the others follow in this order.
    """

    rotate: float = 0.0  # rotation in degrees, up to
    scale: float = 0.0  # relative change of size, up to
    crop: float = 0.0  # largest share of height and width that is cut away; the rest is enlarged to fill the picture
    flip: float = 0.0  # probability of mirroring left to right
    brightness: float = 0.0  # relative change of the grey levels, up to
    noise: float = 0.0  # standard deviation of Gaussian noise; black is 0, white is 1
    cutout: float = 0.0  # side of a square set to black, as a share of the shorter side (arXiv:1708.04552)
    mixup: float = 0.0  # a of Beta(a, a): the share of another picture blended in (arXiv:1710.09412)
    cutmix: float = 0.0  # a of Beta(a, a): the share of the area pasted from another picture (arXiv:1905.04899)
    keep_box: float = 0.3  # boxes of which a smaller share stays visible are dropped

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
    """Text augmentations, applied in this order; shares are of the words of a text (Wei and Zou, arXiv:1901.11196)."""

    reorder: float = 0.0  # probability of exchanging a sentence's clauses: "Although A, B." and "B, although A."
    synonyms: float = 0.0  # share of words replaced by a synonym, among those that have one
    insert: float = 0.0  # synonyms of words of the text inserted at random places, as a share of its words
    swap: float = 0.0  # exchanges of two random words, as a share of the words
    delete: float = 0.0  # probability of leaving out a word; at least one is kept
    thesaurus: str = "moby"  # or wordnet, whose files have to be installed

    def __post_init__(self):
        fraction("augment.text", self, "reorder", "synonyms", "insert", "swap", "delete")
        if self.thesaurus == "auto":  # in the config.json of an earlier version
            object.__setattr__(self, "thesaurus", "moby")
        choice("augment.text.thesaurus", self.thesaurus, ("moby", "wordnet"))

    @property
    def active(self) -> bool:
        return _is_changed(self, but="thesaurus")


def _is_changed(section, but: str) -> bool:
    """Whether any setting differs from its default, apart from `but`, which does nothing by itself."""
    settings = [field for field in dataclasses.fields(section) if field.name != but]
    return any(getattr(section, field.name) != field.default for field in settings)


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    image: ImageAugmentConfig = ImageAugmentConfig()
    text: TextAugmentConfig = TextAugmentConfig()
