"""deepseek-jax data show: a page with the set, its records, and the effect of each augmentation."""

import re

from deepseek_jax.data.sets.show import SHOWN, alone
from tests.user_files import people, write_csv


def test_augment_shows_every_augmentation(run_command, tmp_path):
    page = tmp_path / "digits.html"
    status, out, err = run_command("data", "show", "digits", "--augment", "--output", str(page))
    assert (status, out, err) == (0, f"wrote {page}\n", "")
    text = page.read_text()
    headings = re.findall("<h2>(.*?)</h2>", text)
    names = "rotate scale crop flip brightness noise cutout mixup cutmix".split()
    assert [heading.split()[0] for heading in headings] == ["Classes", "Records", *names, "all"]
    assert text.count("data:image/png") == 1 + len(names) + 1
    assert "<td>train</td><td>1,259</td>" in text


def test_pages_of_tables_and_series(run_command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("diabetes", "co2"):
        assert run_command("data", "show", name)[0] == 0
    assert "<th>progression</th><th>age</th>" in (tmp_path / "diabetes.html").read_text()
    assert (tmp_path / "co2.html").read_text().count("data:image/png") == 1


def test_a_users_own_table_is_shown_by_its_columns(run_command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "t.csv", "age,size,kind", people(40))
    columns = "--config.dataset.columns.features=age,size", "--config.dataset.columns.label=kind"
    split = "--config.dataset.val=0", "--config.dataset.test=0"
    assert run_command("data", "show", "t.csv", *columns, *split) == (0, "wrote t.csv.html\n", "")
    assert "<td>train</td><td>40</td>" in (tmp_path / "t.csv.html").read_text()


def test_only_the_configured_augmentations_are_shown(run_command, tmp_path):
    page = tmp_path / "page.html"
    words = "--config.augment.image.rotate=7", "--config.dataset.seed=3"
    assert run_command("data", "show", "digits", *words, "--output", str(page))[0] == 0
    headings = re.findall("<h2>(.*?)</h2>", page.read_text())
    assert headings == ["Classes", "Records of the training split", "rotate 7", "all together"]


def test_sets_and_augmentations_that_cannot_be_shown_are_refused(run_command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, _, err = run_command("data", "show", "co2", "--augment")
    assert status == 2 and err == "deepseek-jax: augmentations are for images and texts; co2 is of kind series.\n"
    status, _, err = run_command("data", "show", "digit")
    assert status == 2 and "'digit' is neither a set (digits, mnist5k" in err
    status, _, err = run_command("data", "show", "digits", "--config.dataset.vall=0")
    assert status == 2 and err == "deepseek-jax: a labelled set has no key dataset.vall; did you mean dataset.val?\n"
    assert not list(tmp_path.iterdir())


def test_augmentations_are_shown_one_by_one_and_together():
    shown = dict(alone(SHOWN["text"]))
    assert list(shown) == ["reorder 1", "synonyms 0.3", "insert 0.2", "swap 0.2", "delete 0.2", "all together"]
    assert shown["swap 0.2"].text.swap == 0.2 and shown["swap 0.2"].text.delete == 0
