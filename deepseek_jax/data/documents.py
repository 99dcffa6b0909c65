"""Documents, reading them from the user's own files, and a record of what could not be read.

A source is a .txt file, a .jsonl file with the text under one key, or a directory, in which every .jsonl is read as
records and every other file is one document.
"""

import codecs
import collections
import contextlib
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

from deepseek_jax import record
from deepseek_jax.data import chat
from deepseek_jax.data.plain_text import is_utf8
from deepseek_jax.errors import UserError

# First bytes of files that are not UTF-8, although some of their lines may be so by chance -> the reason to report.
OTHER_MARKS = dict.fromkeys(  # UTF-32-LE begins as UTF-16-LE
    (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE), "UTF-16 or UTF-32, save it as UTF-8"
) | {
    b"\x1f\x8b": "gzip, unpack it",
    b"\x28\xb5\x2f\xfd": "Zstandard, unpack it",
    b"\xfd7zXZ": "xz, unpack it",
    b"PK\x03\x04": "zip, unpack it",
    b"PAR1\x15": "Parquet, save it as .jsonl",  # the letters alone may begin a text
}
SECTION_BYTES = 8192  # a .txt is divided into documents of about this size, at blank lines


class Document(NamedTuple):
    name: str  # unique within its corpus
    group: str  # documents of a group are held out together or not at all
    text: str


class Skipped:
    """Counts skipped records by reason, and keeps the first places as `file:line: reason`.

    `read`: bytes of the files read so far, skipped or not.
    """

    PLACES = 100

    def __init__(self):
        self.reasons = collections.Counter()
        self.places: list[str] = []
        self.read = 0

    def add(self, path, line: int, reason: str):
        self.reasons[reason] += 1
        if len(self.places) < self.PLACES:
            self.places.append(f"{path}:{line}: {reason}")

    def as_dict(self) -> dict:
        return {"count": self.reasons.total(), "reasons": dict(self.reasons), "places": self.places}


def skipped_sentence(skipped: dict) -> str:
    """A sentence on Skipped.as_dict for the user, without its full stop; "" if nothing was skipped."""
    count, places = skipped["count"], skipped["places"]
    return f"{records_were(count)} skipped, the first: {places[0]}" if count else ""


def records_were(count: int) -> str:
    """The beginning of a sentence on `count` records: "1 record was" or "5 records were"."""
    return "1 record was" if count == 1 else f"{count:,} records were"


def read_source(path: pathlib.Path, text_field: str, skipped: Skipped) -> Iterator[Document]:
    """Yields the documents in the file or directory `path`, in sorted order; each is a group of its own."""
    if path.is_dir():
        for file in source_files(path):
            name = file.relative_to(path).as_posix()
            if is_jsonl(file):
                yield from read_jsonl(file, name, text_field, skipped)
            else:
                yield from read_file(file, name, name, skipped)
    elif is_jsonl(path):
        yield from read_jsonl(path, path.name, text_field, skipped)
    else:
        yield from read_sections(path, path.name, skipped)


def is_jsonl(path: str | pathlib.Path) -> bool:
    return pathlib.Path(path).suffix.lower() == ".jsonl"


def source_files(path: pathlib.Path) -> list[pathlib.Path]:
    """The files that `read_source` opens: `path` itself or, of a directory, all but hidden files and run directories.

    Otherwise a run directory among the texts would change them as the run goes on, and it could never be resumed.
    UserError if `path` is itself a run directory.
    """
    if not path.is_dir():
        return [path]
    if record.kind(path) == "run":
        raise UserError(
            f"{path} is a run directory, not a source of text; keep texts and runs in separate directories."
        )
    below = sorted(path.rglob("*"))
    runs = {file.parent for file in below if file.name == record.CONFIG_FILE and record.kind(file.parent) == "run"}
    shown = (file for file in below if not is_hidden(file, path))
    return [file for file in shown if file.is_file() and runs.isdisjoint(file.parents)]


def is_hidden(path: pathlib.Path, below: pathlib.Path) -> bool:
    """Whether any component of `path` relative to the directory `below` begins with a dot."""
    return any(part[0] == "." for part in path.relative_to(below).parts)


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[BinaryIO]:
    """Opens a file; UserError if it cannot be read, even if reading fails only in the middle."""
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        mend = "make it readable, or remove it from the source"
        raise UserError(f"cannot read {path}: {error.strerror}; {mend}.") from None


def _is_otherwise_encoded(file: BinaryIO, path: pathlib.Path, skipped: Skipped) -> bool:
    """Whether the file begins with one of OTHER_MARKS; if so, adds it to `skipped`."""
    found = [what for mark, what in OTHER_MARKS.items() if file.peek(len(mark)).startswith(mark)]
    if found:
        skipped.add(path, 1, found[0])
    return bool(found)


def read_file(path: pathlib.Path, name: str, group: str, skipped: Skipped) -> Iterator[Document]:
    """Yields a whole file as one document, or nothing if it is skipped."""
    with _opened(path) as file:
        if _is_otherwise_encoded(file, path, skipped):
            return
        data = file.read()
    skipped.read += len(data)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        skipped.add(path, data.count(b"\n", 0, error.start) + 1, "not UTF-8")
        return
    if text.strip():
        yield Document(name, group, text)
    else:
        skipped.add(path, 1, "empty document")


def read_chats(path: pathlib.Path, skipped: Skipped) -> Iterator[Document]:
    """Yields the conversations of one or all .jsonl files at `path`, one per line under "messages", as JSON texts."""
    for file in source_files(path):
        if is_jsonl(file):
            name = file.relative_to(path).as_posix() if path.is_dir() else file.name
            yield from read_jsonl(file, name, "messages", skipped, _record_chat)


def read_jsonl(
    path: pathlib.Path, name: str, text_field: str, skipped: Skipped, read: Callable[[bytes, str], str] | None = None
) -> Iterator[Document]:
    """Yields one document per line, from the key `text_field`; blank lines are neither records nor skipped ones.

    `read(line, text_field)` returns a line's text or raises ValueError; None: `_record_text`.
    """
    with _opened(path) as lines:
        if _is_otherwise_encoded(lines, path, skipped):
            return
        for number, line in enumerate(lines, 1):
            skipped.read += len(line)
            line = _without_bom(line, number)
            if not line.strip():
                continue
            try:
                text = (read or _record_text)(line, text_field)
            except ValueError as error:
                skipped.add(path, number, str(error))
            else:
                yield Document(f"{name}:{number}", f"{name}:{number}", text)


def _without_bom(line: bytes, number: int) -> bytes:
    """Removes the byte order mark with which some editors begin files."""
    return line.removeprefix(codecs.BOM_UTF8) if number == 1 else line


def _record(line: bytes):
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    except (ValueError, RecursionError):  # ValueError also for a number with thousands of digits
        raise ValueError("broken JSON") from None


def _record_chat(line: bytes, field: str) -> str:
    record = _record(line)
    return json.dumps(chat.checked(record.get(field) if isinstance(record, dict) else None), ensure_ascii=False)


def _record_text(line: bytes, text_field: str) -> str:
    """The text of one JSONL record; ValueError with the reason if it has none."""
    record = _record(line)
    text = record.get(text_field) if isinstance(record, dict) else None
    if not isinstance(text, str):
        raise ValueError(f"no text under {text_field!r} (data.text_field)")
    if not text.strip():
        raise ValueError("empty document")
    if not is_utf8(text):
        raise ValueError("not UTF-8")
    return text


def read_sections(path: pathlib.Path, name: str, skipped: Skipped) -> Iterator[Document]:
    """Divides one long text at the first blank line after SECTION_BYTES, or at any line's end after four times as many.

    Sections keep context together, and still there are whole documents to hold out.  Lines that are not UTF-8 are
    skipped, but not the rest of their section.
    """
    section, size, first = [], 0, 1
    with _opened(path) as lines:
        if _is_otherwise_encoded(lines, path, skipped):
            return
        for number, line in enumerate(lines, 1):
            skipped.read += len(line)
            line = _without_bom(line, number)
            try:
                section.append(line.decode("utf-8"))
                size += len(line)
            except UnicodeDecodeError:
                skipped.add(path, number, "not UTF-8")
            if size >= (SECTION_BYTES if not line.strip() else 4 * SECTION_BYTES):
                yield from _section(section, name, first)
                section, size, first = [], 0, number + 1
    if any(line.strip() for line in section):
        yield from _section(section, name, first)
    elif first == 1:
        skipped.add(path, 1, "empty document")


def _section(lines: list[str], name: str, first: int) -> Iterator[Document]:
    text = "".join(lines).strip("\n")
    if text.strip():
        yield Document(f"{name}:{first}", f"{name}:{first}", text)
