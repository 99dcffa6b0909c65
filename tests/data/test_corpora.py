"""Corpora: real text behind each name, and splits that have no group of documents in common."""

import collections

import pytest

from deepseek_jax.data import corpora
from deepseek_jax.data.corpora import CORPORA, UserText, hold_out
from deepseek_jax.data.skipped import Skipped
from deepseek_jax.errors import UserError

SIZES = {f"group {i}": 100 + 7 * i for i in range(50)}


def test_hold_out_fills_the_share_with_whole_groups():
    for share in (0.02, 0.1, 0.5):
        held = sum(SIZES[group] for group in hold_out(SIZES, share))
        total = sum(SIZES.values())
        assert share * total - max(SIZES.values()) < held <= share * total


def test_hold_out_is_stable_and_never_empty():
    assert hold_out(SIZES, 0.1) == hold_out(dict(reversed(SIZES.items())), 0.1)
    assert hold_out({"a": 1000, "b": 10, "c": 2000}, 1e-9) == {"b"}
    assert hold_out(SIZES, 0.0) == set()
    assert len(hold_out(SIZES, 0.9999)) == len(SIZES) - 1
    assert hold_out(SIZES, 1.0) == SIZES.keys()


def test_one_document_cannot_be_split():
    with pytest.raises(UserError, match="single document.* more text, in several lines or files"):
        hold_out({"a": 10}, 0.02)


def test_literature_is_the_whole_bible():
    documents = list(CORPORA["literature"].documents(None, Skipped()))
    assert len(documents) == 1189 and len({document.group for document in documents}) == 66
    assert documents[0].text.startswith("In the beginning God created")
    assert documents[-1].text.endswith("Amen.")
    assert not any(set("[]") & set(document.text) for document in documents)


@pytest.mark.parametrize("name", ["literature", "code"])
def test_splits_have_no_group_in_common(name, tmp_path):
    builder = CORPORA[name](held_out=0.02, data_dir=tmp_path)
    builder.download_and_prepare()
    groups = collections.defaultdict(set)
    sizes = collections.Counter()
    for split in "train", "held_out":
        source = builder.as_data_source(split)
        for record in source.__getitems__(list(range(len(source)))):
            groups[split].add(record["group"])
            sizes[split] += len(record["text"])
    assert groups["train"] and groups["held_out"] and not groups["train"] & groups["held_out"]
    assert 0.01 < sizes["held_out"] / sizes.total() <= 0.02


def test_prose_paragraphs_are_without_markup():
    from deepseek_jax.data.corpora import Prose

    text = "<p>A first paragraph &amp; its <code>code</code>, long enough to keep.</p> <ul> <li>short</li> </ul>"
    assert list(Prose.paragraphs({"documentation": text})) == ["A first paragraph & its code, long enough to keep."]


def test_a_source_without_documents_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text("{\n{\n")
    builder = UserText(path=tmp_path / "a.jsonl", text_field="text", held_out=0.1, data_dir=tmp_path / "out")
    with pytest.raises(UserError, match="2 records were skipped"):
        builder.download_and_prepare()


def test_reading_and_storing_report_their_progress(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "REPORTED", 1)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.jsonl").write_text('{"text": "a"}\nbroken\n{"text": "b"}\n')
    (tmp_path / "texts" / "b.txt").write_text("c")
    reports = []
    settings = {"held_out": 0.5, "data_dir": tmp_path / "out", "report": lambda *report: reports.append(report)}
    UserText(path=tmp_path / "texts", text_field="text", **settings).download_and_prepare()
    reading = [("reading", done, 36) for done in (35, 35, 36)]  # a small file is read at once
    assert reports == [*reading, *(("storing", done, 3) for done in range(3))]


def test_a_single_document_is_refused_with_what_was_skipped(tmp_path):
    (tmp_path / "a.jsonl").write_text('{\n{"text": "a"}\n[]\n')
    builder = UserText(path=tmp_path / "a.jsonl", text_field="text", held_out=0.1, data_dir=tmp_path / "out")
    said = r"single document \(2 records were skipped, the first: .*a.jsonl:1: broken JSON\), so none can be held out"
    with pytest.raises(UserError, match=said):
        builder.download_and_prepare()
