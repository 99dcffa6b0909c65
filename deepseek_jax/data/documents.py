"""Documents, and reading them from the user's own files.

A source is a .txt file, a .jsonl, .csv or .parquet file with the text under one key, or a directory, in which those
three are read as records and every other file is one document.  Any but .parquet may be compressed (data/opening.py).
"""

import codecs
import functools
import io
import json
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

from deepseek_jax import record
from deepseek_jax.data import chat
from deepseek_jax.data.csv_rows import csv_rows
from deepseek_jax.data.dotted import has, value_at
from deepseek_jax.data.opening import opened, other_contents, plain_name
from deepseek_jax.data.parquet import is_parquet, parquet_values
from deepseek_jax.data.plain_text import is_utf8
from deepseek_jax.data.skipped import Skipped
from deepseek_jax.errors import UserError

MESSAGES = "messages"  # key of a conversation
RENDERED = "role", "content", "reasoning_content"  # keys of a message that templates use; others may be of any type
LONGEST = 1 << 24  # bytes of a first line that are looked at: a .json of gigabytes may be a single line
LOOKED_AT = 1024  # first bytes of a file in which a zero says that it is no text
SECTION_BYTES = 8192  # a .txt is divided into documents of about this size, at blank lines


class Document(NamedTuple):
    name: str  # unique within its corpus
    group: str  # documents of a group are held out together or not at all
    text: str


def read_source(path: pathlib.Path, text_field: str, skipped: Skipped) -> Iterator[Document]:
    """Yields the documents in the file or directory `path`, in sorted order; each is a group of its own."""
    for file in source_files(path):
        name = _name_in(path, file)
        if holds_records(file, text_field):
            yield from read_records(file, name, text_field, skipped, _text_of)
        elif file == path:
            yield from read_sections(file, name, skipped)
        else:
            yield from read_file(file, name, name, skipped)


def read_chats(path: pathlib.Path, skipped: Skipped) -> Iterator[Document]:
    """Yields the conversations in all records at `path`, each under MESSAGES, as JSON texts."""
    for file in source_files(path):
        if holds_records(file, MESSAGES):
            yield from read_records(file, _name_in(path, file), MESSAGES, skipped, _chat_of)
        else:
            skipped.add(file, 1, "neither .jsonl nor .parquet")


def _name_in(path: pathlib.Path, file: pathlib.Path) -> str:
    return file.name if file == path else file.relative_to(path).as_posix()


def holds_records(path: pathlib.Path, field: str) -> bool:
    """Whether a file has a document in each line or row, by its name.

    Of a .json, which may also be a single value, by its first line: whether that is a record with the key `field`.
    """
    if is_parquet(path):
        return True
    suffix = pathlib.Path(plain_name(path)).suffix
    return _begins_with_record(path, field) if suffix == ".json" else suffix in READERS


def _begins_with_record(path: pathlib.Path, field: str) -> bool:
    with opened(path, lambda size: None) as file:
        line = file.readline(LONGEST)
    try:
        return has(json.loads(line), field)
    except (ValueError, RecursionError):
        return False


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
    below = files_below(path)
    runs = {file.parent for file in below if file.name == record.CONFIG_FILE and record.kind(file.parent) == "run"}
    files = [file for file in below if runs.isdisjoint(file.parents)]
    for file in files:
        try:
            file.stat()
        except OSError as error:
            raise UserError(
                f"cannot read {file}: {error.strerror}; make it readable, or remove it from the source."
            ) from None
    return files


def files_below(directory: pathlib.Path) -> list[pathlib.Path]:
    """The files in a directory and in those below it, sorted, without hidden ones; links to nothing are among them.

    Links to directories are followed, but each directory is read once: a link may lead to one that contains it.
    UserError if one cannot be read: Path.rglob would leave out what is in it.
    """

    def refuse(error: OSError):
        raise UserError(
            f"cannot read {error.filename}: {error.strerror}; make it readable, or move it out of {directory}."
        ) from None

    found, seen = [], set()
    for folder, inner, names in os.walk(directory, onerror=refuse, followlinks=True):
        place = os.path.realpath(folder)
        if place in seen:
            inner.clear()
            continue
        seen.add(place)
        inner[:] = sorted(name for name in inner if name[0] != ".")
        files = (os.path.join(folder, name) for name in names if name[0] != ".")
        # Links to nothing are kept, to be refused; pipes, sockets and devices are not.
        found += [pathlib.Path(file) for file in files if os.path.isfile(file) or not os.path.exists(file)]
    return sorted(found)


def read_file(path: pathlib.Path, name: str, group: str, skipped: Skipped) -> Iterator[Document]:
    """Yields a whole file as one document, or nothing if it is skipped."""
    with opened(path, skipped.count) as file:
        if _holds_something_else(file, path, skipped):
            return
        data = file.read()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        skipped.add(path, data.count(b"\n", 0, error.start) + 1, "not UTF-8")
        return
    if text.strip():
        yield Document(name, group, text)
    else:
        skipped.add(path, 1, "empty document")


def _holds_something_else(file: io.BufferedReader, path: pathlib.Path, skipped: Skipped) -> bool:
    """Whether the file holds no text in UTF-8, by its first bytes; if so, adds it to `skipped`."""
    reason = other_contents(file)
    if not reason and b"\0" in file.peek(LOOKED_AT)[:LOOKED_AT]:  # valid UTF-8, but what UTF-16 and token ids have
        reason = "binary or UTF-16, save texts as UTF-8"
    if reason:
        skipped.add(path, 1, reason)
    return bool(reason)


def read_records(
    path: pathlib.Path, name: str, field: str, skipped: Skipped, text_of: Callable[[object, str], str]
) -> Iterator[Document]:
    """Yields one document per record; `text_of(value, field)` makes its text of what it has under the key `field`.

    `text_of` raises ValueError with the reason to skip a record.
    """
    values = parquet_values if is_parquet(path) else READERS[pathlib.Path(plain_name(path)).suffix]
    for number, value in values(path, field, skipped):
        try:
            text = text_of(value, field)
        except ValueError as error:
            skipped.add(path, number, str(error))
        else:
            yield Document(f"{name}:{number}", f"{name}:{number}", text)


def _jsonl_values(path: pathlib.Path, field: str, skipped: Skipped) -> Iterator[tuple[int, object]]:
    """Yields (line, what it has under `field`); blank lines are neither records nor skipped ones."""
    with opened(path, skipped.count) as lines:
        if _holds_something_else(lines, path, skipped):
            return
        for number, line in enumerate(lines, 1):
            line = _without_bom(line, number)
            if not line.strip():
                continue
            try:
                record = json.loads(line.decode("utf-8"))
            except UnicodeDecodeError:
                skipped.add(path, number, "not UTF-8")
            except (ValueError, RecursionError):  # ValueError also for a number with thousands of digits
                skipped.add(path, number, "broken JSON")
            else:
                yield number, value_at(record, field) if has(record, field) else None


def _csv_values(path: pathlib.Path, field: str, skipped: Skipped) -> Iterator[tuple[int, str]]:
    """Yields (number of the row's last line, what it has in the column `field`); without it the file is skipped."""
    with opened(path, skipped.count) as file:
        if _holds_something_else(file, path, skipped):
            return
        # What is not UTF-8 is kept until the text that has it is skipped.
        lines = io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="")
        try:
            for number, row in csv_rows(lines, [field], path, functools.partial(skipped.add, path)):
                yield number, row[field]
        except UserError:
            skipped.add(path, 1, f"no single column {field!r}")


READERS = {".jsonl": _jsonl_values, ".ndjson": _jsonl_values, ".json": _jsonl_values, ".csv": _csv_values}


def _without_bom(line: bytes, number: int) -> bytes:
    """Removes the byte order mark with which some editors begin files."""
    return line.removeprefix(codecs.BOM_UTF8) if number == 1 else line


def _chat_of(messages: object, field: str) -> str:
    said = [{key: message[key] for key in RENDERED if key in message} for message in chat.checked(messages)]
    return json.dumps(said, ensure_ascii=False)


def _text_of(text: object, text_field: str) -> str:
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
    with opened(path, skipped.count) as lines:
        if _holds_something_else(lines, path, skipped):
            return
        for number, line in enumerate(lines, 1):
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
