"""Opening a user's files of text: compressed ones are unpacked while they are read, and the bytes read are counted."""

import codecs
import contextlib
import gzip
import io
import lzma
import pathlib
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

from deepseek_jax.errors import UserError

BUFFER = 1 << 17  # bytes read, or unpacked, at once


def _zstandard(file: BinaryIO) -> BinaryIO:
    import pyarrow

    return pyarrow.CompressedInputStream(file, "zstd")


# First bytes of a compressed file, whatever its name -> what reads its contents.
UNPACKERS: dict[bytes, Callable[[BinaryIO], BinaryIO]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"\x28\xb5\x2f\xfd": _zstandard,
    b"\xfd7zXZ": lzma.LZMAFile,
}
SUFFIXES = (".gz", ".zst", ".xz")  # that a compressed file adds to its name

# First bytes of files that are not UTF-8, although some of their lines may be so by chance -> the reason to report.
OTHER_MARKS = dict.fromkeys(  # UTF-32-LE begins as UTF-16-LE
    (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE), "UTF-16 or UTF-32, save it as UTF-8"
) | {
    b"PK\x03\x04": "zip, unpack it",
    b"BZh91AY&SY": "bzip2, unpack it",
    b"\x04\x22\x4d\x18": "LZ4, unpack it",
    b"PAR1\x15": "Parquet, unpack it or end its name in .parquet",  # the letters alone may begin a text
    **dict.fromkeys(UNPACKERS, "compressed twice, unpack it once"),  # one layer is gone before a file is looked at
}
TAR, TAR_AT = b"ustar", 257  # an archive of text files would otherwise pass for one text


def plain_name(path: str | pathlib.Path) -> str:
    """The name of a file without the suffix of its compression, in lower case: "A.jsonl.gz" -> "a.jsonl"."""
    name = pathlib.Path(path).name.lower()
    return next((name.removesuffix(suffix) for suffix in SUFFIXES if name.endswith(suffix)), name)


class _Counted(io.RawIOBase):
    """A file that tells `count` how many bytes were read."""

    def __init__(self, file: io.FileIO, count: Callable[[int], None]):
        self._file, self._count = file, count

    def readable(self):
        return True

    def seekable(self):
        return True

    def readinto(self, buffer):
        size = self._file.readinto(buffer)
        self._count(size)
        return size

    def seek(self, offset, whence=io.SEEK_SET):
        return self._file.seek(offset, whence)


@contextlib.contextmanager
def opened(
    path: pathlib.Path, count: Callable[[int], None], otherwise: str = "remove it from the source"
) -> Iterator[io.BufferedReader]:
    """Opens a file to read what it holds unpacked; `count` is given the numbers of bytes read from disk.

    UserError if it cannot be read or unpacked, even if that fails only in the middle; it says what can be done
    `otherwise`.
    """
    try:
        with path.open("rb", buffering=0) as file:
            stored = io.BufferedReader(_Counted(file, count), BUFFER)
            unpack = next((each for mark, each in UNPACKERS.items() if _begins(stored, mark)), None)
            yield io.BufferedReader(unpack(stored), BUFFER) if unpack else stored
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise UserError(f"cannot read {path}: {error.strerror}; make it readable, or {otherwise}.") from None
        mend = f"fetch it again, or {otherwise}"
        raise UserError(f"{path} is cut off or damaged: it cannot be unpacked to its end; {mend}.") from None


def other_contents(file: io.BufferedReader) -> str | None:
    """What the file at its start holds instead of UTF-8, as the reason for skipping it; None if no mark says so."""
    if file.peek(TAR_AT + len(TAR))[TAR_AT:].startswith(TAR):
        return "tar, unpack it"
    return next((what for mark, what in OTHER_MARKS.items() if _begins(file, mark)), None)


def _begins(file: io.BufferedReader, mark: bytes) -> bool:
    return file.peek(len(mark)).startswith(mark)
