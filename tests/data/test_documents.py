"""Reading a user's files: malformed records are skipped, counted and reported with their line; nothing else is lost."""

import bz2
import codecs
import errno
import gzip
import json
import lzma
import os

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from deepseek_jax import record
from deepseek_jax.config import Experiment
from deepseek_jax.data.corpora import UserText
from deepseek_jax.data.documents import SECTION_BYTES, read_chats, read_source
from deepseek_jax.data.skipped import Skipped
from deepseek_jax.errors import UserError


def read(path, field="text"):
    skipped = Skipped()
    return list(read_source(path, field, skipped)), skipped


def test_only_malformed_lines_of_jsonl_are_skipped(tmp_path):
    path = tmp_path / "a.jsonl"
    bad = [b'{"text": ', b"[1]", b'{"other": "x"}', b'{"text": 3}', b'{"text": " "}', b'{"text": "\xff"}']
    bad += [b'{"text": "\\ud800"}', b"[" * 5000]
    good = [json.dumps({"text": text}).encode() for text in ("first", "línea\nwith a break", "last")]
    path.write_bytes(b"\n".join([good[0], *bad, b"", good[1], good[2]]))
    documents, skipped = read(path)
    assert [document.text for document in documents] == ["first", "línea\nwith a break", "last"]
    assert [document.name for document in documents] == ["a.jsonl:1", "a.jsonl:11", "a.jsonl:12"]
    assert [place.removeprefix(str(path)) for place in skipped.places] == [
        ":2: broken JSON",
        ":3: no text under 'text' (data.text_field)",
        ":4: no text under 'text' (data.text_field)",
        ":5: no text under 'text' (data.text_field)",
        ":6: empty document",
        ":7: not UTF-8",
        ":8: not UTF-8",
        ":9: broken JSON",
    ]
    assert skipped.as_dict()["count"] == len(bad)


def test_a_byte_order_mark_is_not_part_of_the_text(tmp_path):
    for name, content in ("a.jsonl", '{"text": "x"}\n'), ("b.txt", "x"), ("c/d.md", "x"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(codecs.BOM_UTF8 + content.encode())
        source = tmp_path / name.split("/")[0]
        documents, skipped = read(source)
        assert [document.text for document in documents] == ["x"] and not skipped.as_dict()["count"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "below/a.md"])
def test_a_file_of_another_encoding_is_skipped_whole(tmp_path, name, encoding):
    """Most lines of a UTF-16 file are valid UTF-8 too, with a NUL after each letter, and would be accepted."""
    (tmp_path / "below").mkdir()
    (tmp_path / name).write_text("some lines\n" * 9, encoding)
    documents, skipped = read(tmp_path / name.split("/")[0])
    assert not documents and skipped.places == [f"{tmp_path / name}:1: UTF-16 or UTF-32, save it as UTF-8"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "below/a.md"])
@pytest.mark.parametrize(
    "start, kind",
    [
        (b"PK\x03\x04", "zip, unpack it"),
        (bz2.compress(b"x"), "bzip2, unpack it"),
        (b"\x04\x22\x4d\x18", "LZ4, unpack it"),
        (b"PAR1\x15", "Parquet, unpack it or end its name in .parquet"),
        (gzip.compress(gzip.compress(b"x", mtime=0), mtime=0), "compressed twice, unpack it once"),
        (b"a.py".ljust(257, b"\0") + b"ustar", "tar, unpack it"),
        (gzip.compress(b"a.py".ljust(257, b"\0") + b"ustar\n", mtime=0), "tar, unpack it"),
        ("letters".encode("utf-16-le"), "binary or UTF-16, save texts as UTF-8"),
        ("letters".encode("utf-16-be"), "binary or UTF-16, save texts as UTF-8"),
        (np.arange(300, dtype=np.uint16).tobytes(), "binary or UTF-16, save texts as UTF-8"),
    ],
    ids=["zip", "bz2", "lz4", "parquet", "gz.gz", "tar", "tar.gz", "utf-16-le", "utf-16-be", "token ids"],
)
def test_an_archive_or_binary_file_is_skipped_whole(tmp_path, name, start, kind):
    """Even if some of its lines are valid UTF-8."""
    (tmp_path / "below").mkdir()
    whole = kind.startswith(("tar", "compressed"))
    (tmp_path / name).write_bytes(start if whole else start + b'\nsome lines\n{"text": "x"}\n')
    documents, skipped = read(tmp_path / name.split("/")[0])
    assert not documents and skipped.places == [f"{tmp_path / name}:1: {kind}"]


def zstandard(data: bytes) -> bytes:
    target = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(target, "zstd") as stream:
        stream.write(data)
    return target.getvalue().to_pybytes()


COMPRESS = {"gz": gzip.compress, "zst": zstandard, "xz": lzma.compress}


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "below/a.md"])
def test_a_compressed_file_is_read_as_what_it_holds(tmp_path, name, suffix):
    (tmp_path / "below").mkdir()
    text = "".join(json.dumps({"text": f"{n} " + "word " * 900}) + "\n\n" for n in range(90)).encode()
    (tmp_path / name).write_bytes(text)
    plain = read(tmp_path / name.split("/")[0])[0]
    (tmp_path / name).unlink()
    packed = tmp_path / f"{name}.{suffix}"
    packed.write_bytes(COMPRESS[suffix](text[:9000]) + COMPRESS[suffix](text[9000:]))  # in two frames, as pzstd writes
    documents, skipped = read(packed if packed.parent == tmp_path else packed.parent)
    assert [document.text for document in documents] == [document.text for document in plain]
    assert len(plain) == {"a.jsonl": 90, "a.txt": 45, "below/a.md": 1}[name]
    assert not skipped.places and skipped.read == packed.stat().st_size  # bytes of the file, which progress compares


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_file_that_cannot_be_unpacked_is_refused_by_name(tmp_path, suffix):
    path = tmp_path / f"a.jsonl.{suffix}"
    path.write_bytes(COMPRESS[suffix](b'{"text": "x"}\n' * 99)[:-9])
    with pytest.raises(UserError, match=f"{path} is cut off or damaged"):
        read(path)


def parquet(path, **columns):
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=100)
    return path


def test_rows_of_parquet_are_documents(tmp_path):
    texts = ["first", None, " ", *(f"text {n}" for n in range(300))]
    path = parquet(tmp_path / "a.parquet", id=range(303), body=texts)
    documents, skipped = read(path, "body")
    assert [document.text for document in documents] == ["first", *texts[3:]]
    assert [document.name for document in documents[:2]] == ["a.parquet:1", "a.parquet:4"]
    assert skipped.places == [f"{path}:2: no text under 'body' (data.text_field)", f"{path}:3: empty document"]
    documents, skipped = read(path)
    assert not documents and skipped.places == [f"{path}:1: no column 'text' among id, body"]


ANSWERS = [{"text": "first", "a.b": 1}, None, {"text": None, "a.b": None}, {"text": "last", "a.b": 4}]


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_a_text_below_another_key_is_named_by_a_dotted_path(tmp_path, suffix):
    rows = {"answers": ANSWERS, "text.plain": ["a", "b", "c", "d"], "text": [{"plain": "no"}] * 4}
    path = tmp_path / f"a.{suffix}"
    if suffix == "parquet":
        parquet(path, **rows)
    else:
        path.write_text("".join(json.dumps(dict(zip(rows, row))) + "\n" for row in zip(*rows.values())))
    documents, skipped = read(path, "answers.text")
    assert [document.text for document in documents] == ["first", "last"]
    assert skipped.places == [f"{path}:{line}: no text under 'answers.text' (data.text_field)" for line in (2, 3)]
    assert [document.text for document in read(path, "text.plain")[0]] == ["a", "b", "c", "d"]  # a key comes first
    documents, skipped = read(path, "answers.words")
    listed = "answers, answers.text, answers.a.b, text.plain, text, text.plain"
    why = f"no column 'answers.words' among {listed}" if suffix == "parquet" else "no text under 'answers.words'"
    assert not documents and skipped.places[0].startswith(f"{path}:1: {why}")


def test_columns_of_parquet_that_are_no_texts_are_skipped(tmp_path):
    path = tmp_path / "a.parquet"
    twice = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["text", "text"])
    pyarrow.parquet.write_table(twice, path)
    assert read(path)[1].places == [f"{path}:1: several columns 'text'"]
    parquet(path, text=pyarrow.array([2**62], pyarrow.timestamp("ms")))
    assert read(path)[1].places == [f"{path}:1: no text under 'text' (data.text_field)"]
    path.write_bytes(path.read_bytes().replace(b"text", b"\xff" * 4))
    with pytest.raises(UserError, match=f"{path} is damaged or not Parquet"):
        read(path)


def test_lists_of_texts_are_no_documents(tmp_path):
    path = parquet(tmp_path / "a.parquet", answers=[{"text": ["a", "b"]}], turns=[[{"text": "a"}, {"text": "b"}]])
    for field in ("answers.text", "turns.text"):
        documents, skipped = read(path, field)
        assert not documents and skipped.places == [f"{path}:1: no text under {field!r} (data.text_field)"]


@pytest.mark.parametrize("kind", [pyarrow.string(), pyarrow.binary()], ids=str)
def test_a_row_of_parquet_that_is_not_utf8_is_skipped(tmp_path, kind):
    """Also if the column is not marked as text, as some writers leave it."""
    broken = pyarrow.array([b"good", b"\xff", b"last"]).view(kind)
    documents, skipped = read(parquet(tmp_path / "a.parquet", text=broken))
    assert [document.text for document in documents] == ["good", "last"]
    assert skipped.places == [f"{tmp_path}/a.parquet:2: not UTF-8"]


@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_a_damaged_parquet_is_refused_by_name(tmp_path, share):
    path = parquet(tmp_path / "a.parquet", text=[f"text {n}" for n in range(300)])
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(UserError, match=f"{path} is damaged or not Parquet"):
        read(path)


def test_conversations_are_read_from_parquet(tmp_path):
    turns = [{"role": "user", "content": "why?"}, {"role": "assistant", "content": "so", "reasoning_content": "hm"}]
    path = parquet(tmp_path / "a.parquet", messages=[turns, turns[:1], None])
    skipped = Skipped()
    (document,) = read_chats(path, skipped)
    said = [{key: text for key, text in turn.items() if text} for turn in json.loads(document.text)]
    assert said == turns
    assert [place.rpartition(":")[2] for place in skipped.places] == [
        " not user and assistant in turns",
        " not a list of messages",
    ]


def test_a_number_of_thousands_of_digits_is_broken_json(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"text": "x", "number": {"1" * 5000}}}\n')
    assert read(path)[1].places == [f"{path}:1: broken JSON"]


def test_links_to_directories_are_followed_and_each_is_read_once(tmp_path):
    texts, elsewhere = tmp_path / "texts", tmp_path / "elsewhere"
    for directory in (texts, elsewhere):
        directory.mkdir()
        (directory / "a.txt").write_text(directory.name)
    (texts / "linked").symlink_to(elsewhere)
    (texts / "once").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(texts)
    (elsewhere / ".hidden").symlink_to(tmp_path)
    documents, skipped = read(texts)
    assert [document.name for document in documents] == ["a.txt", "linked/a.txt"]
    assert [document.text for document in documents] == ["texts", "elsewhere"] and not skipped.places


def test_a_link_to_nothing_and_a_closed_directory_are_refused(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / ".lock").symlink_to(tmp_path / "nothing")
    assert len(read(tmp_path)[0]) == 1
    (tmp_path / "b.txt").symlink_to(tmp_path / "nothing")
    with pytest.raises(UserError, match=f"cannot read {tmp_path}/b.txt: No such file"):
        read(tmp_path)
    (tmp_path / "b.txt").unlink()
    (tmp_path / "closed").mkdir()
    scandir = os.scandir

    def refusing(path):  # the file system lets root open everything
        if str(path).endswith("closed"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(UserError, match=f"cannot read {tmp_path}/closed: Permission denied"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "below/a.md"])
def test_an_unreadable_file_is_refused_by_name(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.symlink_to("/proc/self/mem")  # reading its first byte raises an I/O error
    with pytest.raises(UserError, match=f"cannot read {path}: Input/output error"):
        read(tmp_path / name.split("/")[0])


def test_the_text_field_is_configurable(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"body": "x"}\n')
    assert [document.text for document in read(path, "body")[0]] == ["x"]


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_rows_of_csv_are_documents(tmp_path, compress):
    path = tmp_path / ("a.csv" if compress is bytes else "A.CSV.gz")
    data = b'\xef\xbb\xbflabel,text\r\n1,"two\nlines, ""quoted"""\r\n2\r\n3,\r\n4,caf\xe9\r\n5,last\r\n6,"open\r\n'
    path.write_bytes(compress(data))
    documents, skipped = read(path)
    assert [document.text for document in documents] == ['two\nlines, "quoted"', "last"]
    assert [document.name for document in documents] == [f"{path.name}:3", f"{path.name}:7"]
    assert [place.removeprefix(str(path)) for place in skipped.places] == [
        ":4: the row does not have as many fields as the header",
        ":5: empty document",
        ":6: not UTF-8",
        ":8: unexpected end of data; what follows is not read",
    ]
    assert read(path, "body")[1].places == [f"{path}:1: no single column 'body'"]
    path.write_bytes(compress("text\na\n".encode("utf-16-le")))
    assert read(path)[1].places == [f"{path}:1: binary or UTF-16, save texts as UTF-8"]


@pytest.mark.parametrize("name", ["a.ndjson", "a.json", "a.json.gz"])
def test_json_lines_by_other_names_are_documents(tmp_path, name):
    """C4, say, is published as .json.gz."""
    compress = gzip.compress if name.endswith(".gz") else bytes
    (tmp_path / name).write_bytes(compress(b'\xef\xbb\xbf{"text": "one"}\n{"text": "two"}\n'))
    for source in (tmp_path, tmp_path / name):
        assert [document.text for document in read(source)[0]] == ["one", "two"]


@pytest.mark.parametrize("content", ['{"name": "x"}\n', '{\n "text": "x"\n}\n', '[{"text": "x"}]\n', '"text"\n'])
def test_another_json_is_one_document(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    assert [document.text for document in read(tmp_path)[0]] == [content]


def test_files_without_conversations_are_reported(tmp_path):
    (tmp_path / "README.md").write_text("about")
    skipped = Skipped()
    assert not list(read_chats(tmp_path, skipped))
    assert skipped.places == [f"{tmp_path}/README.md:1: neither .jsonl nor .parquet"]


def test_long_text_is_cut_at_blank_lines_and_loses_only_bad_lines(tmp_path):
    path = tmp_path / "a.txt"
    paragraphs = [f"paragraph {i} " + "word " * 30 + "\nits second line\n" for i in range(400)]
    data = "\n".join(paragraphs).encode().split(b"\n")
    data.insert(700, b"bad \xff line")
    path.write_bytes(b"\n".join(data))
    documents, skipped = read(path)
    assert skipped.places == [f"{path}:701: not UTF-8"]
    assert all(SECTION_BYTES <= len(document.text) + 2 < SECTION_BYTES + 400 for document in documents[:-1])
    assert len({document.group for document in documents}) == len(documents) > 5
    lines = [line for document in documents for line in document.text.split("\n") if line]
    assert lines == [line for paragraph in paragraphs for line in paragraph.split("\n") if line]


def test_text_without_blank_lines_is_cut_at_line_ends(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("0123456789\n" * 10_000)
    documents, _ = read(path)
    assert "\n".join(document.text for document in documents) + "\n" == path.read_text()
    assert [document.name for document in documents] == ["a.txt:1", "a.txt:2980", "a.txt:5959", "a.txt:8938"]


def test_a_directory_gives_a_document_per_file_and_per_jsonl_line(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_text("hidden")
    (tmp_path / "a.py").write_text("print(1)\n\nprint(2)\n")
    (tmp_path / "b.bin").write_bytes(b"line\nline \xff")
    (tmp_path / "c.txt").write_text("")
    (tmp_path / "sub" / "d.JSONL").write_text('{"text": "one"}\n{"text": "two"}\n')
    documents, skipped = read(tmp_path)
    assert [document.name for document in documents] == ["a.py", "sub/d.JSONL:1", "sub/d.JSONL:2"]
    assert documents[0].text == "print(1)\n\nprint(2)\n"
    assert skipped.places == [f"{tmp_path}/b.bin:2: not UTF-8", f"{tmp_path}/c.txt:1: empty document"]


def test_empty_text_is_reported(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("\n\n")
    documents, skipped = read(path)
    assert not documents and skipped.places == [f"{path}:1: empty document"]


def test_run_directories_among_the_texts_are_ignored(tmp_path):
    (tmp_path / "a.txt").write_text("a text")
    (tmp_path / "site").mkdir()
    for name, content in ("config.json", '{"experiment": 3}'), ("metrics.jsonl", '{"text": "of a program"}'):
        (tmp_path / "site" / name).write_text(content)
    documents, before = read(tmp_path)[0], UserText.provenance(str(tmp_path), "text")
    record.claim(tmp_path / "runs" / "mine", Experiment())
    assert UserText.provenance(str(tmp_path), "text") == before  # as soon as a run claims the directory
    (tmp_path / "runs" / "mine" / "metrics.jsonl").write_text('{"text": "a row"}\n')
    (tmp_path / "runs" / "mine" / "checkpoints").mkdir()
    (tmp_path / "runs" / "mine" / "checkpoints" / "notes").write_text("a step")
    assert UserText.provenance(str(tmp_path), "text") == before and read(tmp_path)[0] == documents
    assert [document.name for document in documents] == ["a.txt", "site/config.json", "site/metrics.jsonl:1"]
    with pytest.raises(UserError, match="mine is a run directory, not a source of text; keep texts and runs"):
        read(tmp_path / "runs" / "mine")
