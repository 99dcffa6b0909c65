"""A user's own labelled sets through the command line: training, scoring, and predictions for new inputs."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from deepseek_jax.config import LogConfig, OptimizerConfig, SupervisedExperiment, TrainConfig
from deepseek_jax.models.hybrid.config import AttentionConfig, ConvolutionConfig, HybridConfig, RecurrentConfig
from deepseek_jax.tasks.detection import FOUND
from tests.user_files import write_config, write_csv, write_jsonl, write_parquet

SMALL = SupervisedExperiment(
    model=HybridConfig(
        convolution=ConvolutionConfig(filters=(16,), kernel_size=5, norm="batch"),
        recurrent=RecurrentConfig("none"),
        attention=AttentionConfig(0),
    ),
    optimizer=OptimizerConfig(peak_lr=1e-2),
    train=TrainConfig(batch_size=16),
    log=LogConfig(tensorboard=False),
)


@pytest.fixture
def trained(tmp_path, run_command, monkeypatch):
    """trained(name, *keys) trains a small network on tmp_path / name and returns (run directory, its scores)."""
    monkeypatch.chdir(tmp_path)

    def train(name: str, *keys: str) -> tuple[str, dict]:
        write_config(tmp_path / "small.py", SMALL)
        words = [f"--config.{key}" for key in (f"dataset.name={name}", *keys)]
        status, _, err = run_command("train", "--config", "small.py", "--workdir", "run", *words)
        assert status == 0, err
        rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
        return "run", {name: value for row in rows for name, value in row.items()}

    return train


def test_boxes_are_learned_scored_and_predicted(tmp_path, trained, run_command):
    rng = np.random.default_rng(0)
    rows = []
    for number in range(40):
        pixels = rng.integers(0, 40, (16, 32), np.uint8)
        top, left, grey = *rng.integers(0, [8, 24]), 120 + 120 * (number % 2)
        pixels[top : top + 8, left : left + 8] = grey
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        box = [int(left), int(top), int(left) + 8, int(top) + 8]
        rows.append({"file": f"{number}.png", "boxes": [box], "labels": [["grey", "white"][number % 2]]})
    rows.append({"file": "0.png", "boxes": [], "labels": []})
    write_jsonl(tmp_path / "t.jsonl", rows)
    columns = "dataset.columns.image=file", "dataset.columns.boxes=boxes", "dataset.columns.label=labels"
    keys = "model.sequence=cells", "objective.name=boxes", "objective.size_weight=2.0", "augment.image.flip=0.5"
    length = "train.steps=150", "eval.every=50", "train.seed=1"
    stopping = "stopping.metric=val/map50", "stopping.highest=True", "stopping.patience=9"
    run, scores = trained("t.jsonl", *columns, *keys, *length, *stopping)
    assert scores["final/map50"] > 0.3
    status, out, _ = run_command("eval", "--workdir", run)
    assert status == 0 and f"{scores['final/map50']:.5g}" in out
    with Image.open(tmp_path / "2.png") as picture:
        picture.resize((320, 200)).save(tmp_path / "large.png")
    status, out, _ = run_command("predict", "--workdir", run, "2.png", "large.png")
    found = [json.loads(line) for line in out.splitlines()]
    assert status == 0 and [each["file"] for each in found] == ["2.png", "large.png"]
    left, top, right, bottom = rows[2]["boxes"][0]
    for each in found:  # coordinates are fractions of the picture, whatever its size
        y0, x0, y1, x1 = each["boxes"][0]["box"]
        assert top < 8 * (y0 + y1) < bottom and left < 16 * (x0 + x1) < right
        assert min(box["score"] for box in each["boxes"]) >= FOUND, "boxes that are hardly believed are left out"
    words = [f"--config.{key}" for key in columns]
    assert run_command("data", "check", "t.jsonl", *words)[0] == 0
    assert run_command("data", "show", "t.jsonl", "--augment", *words)[0] == 0
    assert "<td>white</td>" in (tmp_path / "t.jsonl.html").read_text()


@pytest.mark.slow
def test_pictures_in_a_directory_of_parquet_are_learned_scored_and_predicted(tmp_path, trained, run_command):
    """As Hugging Face's datasets writes them: files named after splits, and names of classes in their metadata."""
    rng = np.random.default_rng(0)
    features = {"image": {"_type": "Image"}, "label": {"names": ["dark", "light"], "_type": "ClassLabel"}}
    (tmp_path / "set").mkdir()

    def write(name: str, count: int) -> str:
        rows = {"image": [], "label": [number % 2 for number in range(count)]}
        for label in rows["label"]:
            file = io.BytesIO()
            Image.fromarray(rng.integers(0, 100, (8, 8), np.uint8) + np.uint8(150 * label)).save(file, "png")
            rows["image"].append({"bytes": file.getvalue(), "path": "a.png"})
        return write_parquet(tmp_path / name, rows, features)

    for split, count in (("train", 40), ("validation", 10), ("test", 10)):
        write(f"set/{split}-00000-of-00001.parquet", count)
    columns = "dataset.columns.image=image", "dataset.columns.label=label"
    run, scores = trained("set", *columns, "model.readout=mean", "train.steps=40", "eval.every=20")
    assert scores["final/accuracy"] == 1
    status, out, _ = run_command("eval", "--workdir", run)
    assert status == 0 and "test split of set" in out
    write("new.parquet", 4)
    Image.new("L", (8, 8), 200).save(tmp_path / "light.png")
    status, out, _ = run_command("predict", "--workdir", run, "new.parquet", "light.png")
    found = [json.loads(line) for line in out.splitlines()]
    assert status == 0 and [each["class"] for each in found] == ["dark", "light", "dark", "light", "light"]
    assert [each.get("line") for each in found] == [1, 2, 3, 4, None]
    words = [f"--config.{key}" for key in columns]
    assert run_command("data", "check", "set", *words)[0] == 0
    assert run_command("data", "show", "set", *words)[0] == 0
    assert "<td>light</td>" in (tmp_path / "set.html").read_text()
    (tmp_path / "new.parquet").write_bytes(b"")
    status, _, err = run_command("predict", "--workdir", run, "new.parquet")
    assert status == 2 and err.startswith("deepseek-jax: new.parquet is damaged or not Parquet")


@pytest.mark.slow
def test_a_series_is_learned_scored_and_forecast(tmp_path, trained, run_command):
    values = [1000 + 10 * np.sin(2 * np.pi * step / 12) for step in range(240)]

    def write(name, values):
        write_csv(tmp_path / name, "level", map(str, values))

    write("t.csv", values[:200])
    columns = "dataset.columns.series=level", "dataset.series.window=24", "dataset.series.horizon=4"
    keys = "model.recurrent.kind=gru", "objective.name=mse", "train.steps=200", "eval.every=100"
    run, scores = trained("t.csv", *columns, *keys)
    assert scores["final/mae"] < 1 < scores["final/seasonal naive, mae"] and scores["final/ridge regression, mae"] < 0.1
    status, out, _ = run_command("eval", "--workdir", run)
    assert status == 0 and f"{scores['final/mae']:.5g}" in out
    write("new.csv", values[:236])
    status, out, _ = run_command("predict", "--workdir", run, "new.csv")
    found = json.loads(out)
    assert status == 0 and (found["file"], found["line"]) == ("new.csv", 237)
    np.testing.assert_allclose(found["numbers"], values[236:], atol=2)
    write_parquet(tmp_path / "new.parquet", {"level": values[:236]})
    status, out, _ = run_command("predict", "--workdir", run, "new.parquet")
    assert status == 0 and json.loads(out) == found | {"file": "new.parquet", "line": 236}
    write("new.csv", values[:23])
    status, _, err = run_command("predict", "--workdir", run, "new.csv")
    assert (status, err) == (2, "deepseek-jax: new.csv has 23 values of level; this network forecasts from 24.\n")
    write("new.csv", [*values[:30], "x"])
    status, _, err = run_command("predict", "--workdir", run, "new.csv")
    assert (status, err) == (2, "deepseek-jax: new.csv line 32: level is 'x'; it must be a number.\n")
    words = [f"--config.{key}" for key in columns]
    assert run_command("data", "check", "t.csv", *words)[0] == 0
    assert run_command("data", "show", "t.csv", *words)[0] == 0
    assert (tmp_path / "t.csv.html").read_text().count("data:image/png") == 1
