"""Documents, the user's own files as a source of them, and a record of what could not be read.

Three shapes of source: a .txt file, a .jsonl file with the text under one key, and a directory in which every .jsonl
is read as records and every other file is one document.
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

# What files begin with that are no UTF-8 though lines of theirs may be so by chance, and what to say of them.
OTHER_MARKS = dict.fromkeys(  # UTF-32-LE begins as UTF-16-LE
    (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE), "UTF-16 or UTF-32, save it as UTF-8"
) | {
    b"\x1f\x8b": "gzip, unpack it",
    b"\x28\xb5\x2f\xfd": "Zstandard, unpack it",
    b"\xfd7zXZ": "xz, unpack it",
    b"PK\x03\x04": "zip, unpack it",
    b"PAR1\x15": "Parquet, save it as .jsonl",  # a text may begin with the letters
}
SECTION_BYTES = 8192  # a .txt is cut into documents of about this size, at blank lines


class Document(NamedTuple):
    name: str  # unique within its corpus
    group: str  # documents of one group are held out together, or not at all
    text: str


class Skipped:
    """Counts what no document could be made of, and keeps the first places as `file:line: reason`.

    `read` is how many bytes of the files were read so far, skipped or not.
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
    """What a person is told of Skipped.as_dict, without an end; "" where nothing was skipped."""
    count, places = skipped["count"], skipped["places"]
    return f"{records_were(count)} skipped, the first: {places[0]}" if count else ""


def records_were(count: int) -> str:
    """The beginning of a sentence on what became of so many records."""
    return "1 record was" if count == 1 else f"{count:,} records were"


def read_source(path: pathlib.Path, text_field: str, skipped: Skipped) -> Iterator[Document]:
    """The documents below `path`, in sorted order; each is a group of its own."""
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
    """The files that `read_source` opens: `path` itself, or those below it without hidden ones and those of runs.

    A run that lies among its texts would else change them as it goes on, and never be resumed.
    """
    if not path.is_dir():
        return [path]
    if record.is_run(path):
        raise UserError(f"{path} is a run directory and no source of text; keep texts and runs in directories apart.")
    below = sorted(path.rglob("*"))
    runs = {file.parent for file in below if file.name == record.FILE and record.is_run(file.parent)}
    shown = (file for file in below if not is_hidden(file, path))
    return [file for file in shown if file.is_file() and runs.isdisjoint(file.parents)]


def is_hidden(path: pathlib.Path, below: pathlib.Path) -> bool:
    """Whether a part of the way from the directory `below` to `path` begins with a dot."""
    return any(part[0] == "." for part in path.relative_to(below).parts)


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[BinaryIO]:
    """UserError where the file cannot be read, also where that shows in the middle of it."""
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); mend it or take it out of the source.") from None


def _is_otherwise_encoded(file: BinaryIO, path: pathlib.Path, skipped: Skipped) -> bool:
    """Whether the file begins as one of OTHER_MARKS, which `skipped` is then told."""
    found = [what for mark, what in OTHER_MARKS.items() if file.peek(len(mark)).startswith(mark)]
    if found:
        skipped.add(path, 1, found[0])
    return bool(found)


def read_file(path: pathlib.Path, name: str, group: str, skipped: Skipped) -> Iterator[Document]:
    """A whole file as one document."""
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
    """Conversations, one a line under "messages", of a .jsonl file or those below a directory; their text is JSON."""
    for file in source_files(path):
        if is_jsonl(file):
            name = file.relative_to(path).as_posix() if path.is_dir() else file.name
            yield from read_jsonl(file, name, "messages", skipped, _record_chat)


def read_jsonl(
    path: pathlib.Path, name: str, text_field: str, skipped: Skipped, read: Callable[[bytes, str], str] | None = None
) -> Iterator[Document]:
    """One document a line, under the key `text_field`; blank lines hold no record and are not counted.

    `read` makes the text of a line, or raises ValueError; None: what is there is the text.
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
    """Some editors begin files with a byte order mark."""
    return line.removeprefix(codecs.BOM_UTF8) if number == 1 else line


def _record(line: bytes):
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    except (ValueError, RecursionError):  # also of a number of thousands of digits
        raise ValueError("broken JSON") from None


def _record_chat(line: bytes, field: str) -> str:
    record = _record(line)
    return json.dumps(chat.checked(record.get(field) if isinstance(record, dict) else None), ensure_ascii=False)


def _record_text(line: bytes, text_field: str) -> str:
    """The text of one JSONL record; ValueError names what is wrong with it."""
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
    """One long text, cut at the first blank line after SECTION_BYTES (at the line's end after four times as many).

    Sections keep a text's context together and still leave whole documents to hold out.  A line that is not UTF-8 is
    skipped alone.
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
