"""deepseek-jax inspect: a model's layers, parameters and cache at a glance."""

from tests.paths import ROOT


def test_a_released_model_is_shown_with_its_counts(run_command):
    status, output, _ = run_command("inspect", "--model", "v3", "--length", "1000")
    assert status == 0
    for shown in ("3 to 60", "671,026,404,352", "37,552,282,624", "11,610,067,968", f"{61 * 576 * 2:,}"):
        assert shown in output


def test_a_config_is_shown_with_overrides(run_command):
    words = f"inspect --config {ROOT}/configs/v3_tiny.py --config.model.num_hidden_layers=7".split()
    status, output, _ = run_command(*words)
    assert status == 0 and "1 to 6" in output and "MTP module 0" in output


def test_unknown_models_and_overrides_of_released_ones_are_refused(run_command):
    assert "no released model 'v9'" in run_command("inspect", "--model", "v9")[2]
    assert (
        "cannot change a released --model" in run_command("inspect", "--model", "v3", "--config.model.hidden_size=8")[2]
    )
