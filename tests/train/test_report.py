"""The verdict of a run and the page that shows it."""

import json

import numpy as np
import pytest

from deepseek_jax.train.reporting import plots, report, sampled_indices, shown
from deepseek_jax.train.reporting.summary import final_scores
from deepseek_jax.train.reporting.verdict import verdict
from tests.user_files import write_jsonl


def row(step, loss=3.0, **changes):
    return {
        "step": step,
        "loss/next": loss,
        "loss/total": loss,
        "grad_norm": 1.0,
        "learning_rate": 1e-3,
        "skipped": 0,
        "step_seconds": 0.1,
        "data_wait_seconds": 0.0001,
        "tokens_per_second": 1000.0,
        "router/max_violation": {"1": 0.5},
        "router/dead_experts": {"1": 0},
    } | changes


SHOWN = shown.SHOWN["language_model"]


def run(**changes):
    """Forty rows of a run that learns; `changes` apply to the last eight."""
    return [row(step, 5 - step / 10, **(changes if step > 32 else {})) for step in range(1, 41)]


@pytest.mark.parametrize("norm", [0.0, float("nan")])
def test_zero_and_nan_gradient_norms_are_plotted_without_a_warning(recwarn, norm):
    assert plots.curves([row(step, grad_norm=norm) for step in (1, 2)], SHOWN).startswith(b"\x89PNG")
    assert not recwarn.list


def test_a_run_that_learns_is_healthy():
    rows = [*run(), {"step": 40, "val/bits_per_byte": 1.5}]
    assert verdict(rows, 40, SHOWN) == (
        True,
        ["finished, best held-out bits per byte 1.5000 at step 40"],
    )
    assert verdict(rows, 100, SHOWN)[1][0].startswith("at step 40 of 100")
    diverged = [{"step": 10, "val/bits_per_byte": float("nan")}]
    assert verdict([*rows[:-1], *diverged], 40, SHOWN)[1] == ["finished"]
    assert verdict([*diverged, *rows], 40, SHOWN) == verdict(rows, 40, SHOWN)


@pytest.mark.parametrize(
    "changes, complaint",
    [
        ({"loss": 3.0}, "the loss rose to 3.000 from"),  # it began at 5.0
        ({"grad_norm": 30.0}, "the gradient norm is growing"),
        ({"grad_norm": float("nan")}, "the loss or gradient of step 40 is not finite"),
        ({"skipped": 1}, "1 step was dropped"),
        ({"skipped": 2}, "2 steps were dropped"),
        ({"router/dead_experts": {"1": 3}}, "layer 1 has 3 dead experts"),
        ({"router/max_violation": {"1": 7.0}}, "layer 1 is out of balance: its busiest expert has 8.0 times"),
        ({"data_wait_seconds": 0.09}, "of the time went into waiting for data"),
    ],
)
def test_the_verdict_names_what_is_wrong(changes, complaint):
    loss = changes.pop("loss", None)
    rows = run(**changes)
    if loss:
        rows[32:] = [row(step, loss) for step in range(33, 41)]
    healthy, sentences = verdict(rows, 40, SHOWN)
    assert not healthy
    assert any(sentence.startswith(complaint) or complaint in sentence for sentence in sentences)


def test_a_run_of_nothing_but_nan_is_judged_without_a_warning(recwarn):
    nan = float("nan")
    rows = [row(1, nan, **{"loss/total": nan, "grad_norm": nan, "skipped": 1})]
    _, sentences = verdict(rows, 40, SHOWN)
    assert sentences[1] == "the loss or gradient of step 1 is not finite"
    assert not recwarn.list


def test_the_loss_rose_also_if_the_last_step_is_not_finite():
    rows = [*(row(step, 3.0 if step > 32 else 1.0) for step in range(1, 40)), row(40, float("nan"))]
    assert "the loss rose to 3.000 from 1.000 at its best" in verdict(rows, 40, SHOWN)[1]


def test_an_expert_that_is_idle_for_a_moment_is_not_dead():
    rows = run()
    rows[-1]["router/dead_experts"] = {"1": 3}
    assert verdict(rows, 40, SHOWN)[0]


def test_the_lowest_of_several_scores_is_the_best():
    rows = [*run(), *({"step": step, "val/bits_per_byte": score} for step, score in ((20, 1.7), (30, 1.5), (40, 1.6)))]
    assert verdict(rows, 40, SHOWN)[1] == ["finished, best held-out bits per byte 1.5000 at step 30"]


def test_an_expert_with_up_to_four_times_the_mean_load_is_tolerated():
    for violation, healthy in ((2.9, True), (3.1, False)):
        assert verdict(run(**{"router/max_violation": {"1": violation}}), 40, SHOWN)[0] is healthy


def test_a_run_that_hardly_waits_for_data_is_healthy():
    for seconds, healthy in ((0.004, True), (0.006, False)):  # of 0.1 per step
        rows = [row(step, 5 - step / 10, data_wait_seconds=seconds) for step in range(1, 41)]
        assert verdict(rows, 40, SHOWN)[0] is healthy
    assert verdict(rows, 40, SHOWN)[1][1].endswith("waiting for data; raise data.workers or data.prefetch")


def test_a_labelled_set_is_not_advised_to_raise_data_workers():
    rows = [{**row(step, data_wait_seconds=0.01), "loss/fit": 3.0} for step in range(1, 41)]
    assert verdict(rows, 40, shown.SHOWN["supervised"])[1][1].endswith("went into waiting for data")


def test_a_run_without_steps_is_not_called_healthy():
    assert verdict([], 10, SHOWN) == (False, ["no step has finished yet"])


def test_final_scores_are_the_last_scores_median_speed_and_latest_goodput(tmp_path):
    speeds = [row(step, tokens_per_second=speed) for step, speed in enumerate((10.0, 900.0, 520.0, 480.0), 1)]
    rows = [*speeds, {"step": 2, "goodput": 0.5}, {"step": 3, "goodput": 0.75, "final/loss": 2.5, "val/loss": 2.0}]
    write_jsonl(tmp_path / "metrics.jsonl", rows)
    assert final_scores(tmp_path, SHOWN) == {"final/loss": 2.5, "tokens_per_second": 500.0, "goodput": 0.75}
    assert final_scores(tmp_path / "elsewhere", SHOWN) == {}


def test_the_page_is_made_from_the_run_directory_alone(tmp_path):
    evaluation = {
        "step": 40,
        "val/loss": 2.0,
        "val/bits_per_byte": 1.5,
        "final/bits_per_byte": 1.4,
        "router/share": {"1": [0.5, 0.5, 0.0, 0.0]},
    }
    rows = [*run(), evaluation]
    write_jsonl(tmp_path / "metrics.jsonl", rows)
    config = {"experiment": {"train": {"steps": 40}}, "hash": "abc", "python": "3.11", "packages": {"jax": "1"}}
    (tmp_path / "config.json").write_text(json.dumps(config | {"git": None}))
    page = report.write(tmp_path).read_text()
    assert page.count("data:image/png;base64,") == 2
    assert "Healthy:" in page and "final/bits_per_byte" in page
    assert 'src="http' not in page and "<script" not in page


def test_a_run_without_rows_gets_no_page(tmp_path):
    assert report.write(tmp_path) is None


def test_a_long_run_computes_no_more_medians_than_the_report_has_points(monkeypatch):
    """A running median at every row took quadratic time: minutes for 100,000 rows."""
    median, counted = np.median, []
    monkeypatch.setattr(np, "median", lambda *given, **more: counted.append(1) or median(*given, **more))
    rows = [row(step, 5 - step / 1000) for step in range(1, 3001)] + [row(step, 3.0) for step in range(3001, 4001)]
    assert plots.curves(rows, SHOWN).startswith(b"\x89PNG")
    assert verdict(rows, 4000, SHOWN)[1][1].startswith("the loss rose to 3.000 from 2.2")
    assert len(counted) < 3 * sampled_indices.MOST + 10
    assert sampled_indices.sampled_indices(sampled_indices.MOST).tolist() == list(range(sampled_indices.MOST))
