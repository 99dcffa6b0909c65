"""Every schedule at the steps where it changes, against the numbers in DeepSeek's papers where they have it."""

import dataclasses

import numpy as np
import pytest

from deepseek_jax.config import SCHEDULES, LossConfig, OptimizerConfig, RouterConfig, ScheduleConfig, TrainConfig
from deepseek_jax.errors import UserError
from deepseek_jax.train.optim import schedules

PEAK = 2.2e-4
TOTAL = 14800  # steps: one for each billion of V3's 14.8T tokens


def rate(steps=TOTAL, **settings):
    config = OptimizerConfig(peak_lr=PEAK, schedule=ScheduleConfig(**settings))
    schedule = schedules.learning_rate(config, steps)
    return lambda step: float(schedule(np.int32(step)))


def close(value):
    return pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("name", sorted({*SCHEDULES} - {"one_cycle", "range"}))
def test_warmup_is_linear_from_zero_to_the_peak(name):
    at = rate(name=name, warmup_steps=200, step_every=1000)
    assert at(0) == 0
    assert at(50) == close(PEAK / 4)
    assert at(199) == close(PEAK * 199 / 200)
    assert at(200) == close(PEAK)


@pytest.mark.parametrize("name", sorted({*SCHEDULES} - {"one_cycle", "range"}))
def test_without_warmup_the_first_step_has_the_peak(name):
    assert rate(name=name)(0) == close(PEAK)


@pytest.mark.parametrize("name", ["constant", "plateau"])
def test_constant_and_plateau_stay_at_the_peak(name):
    assert rate(name=name)(TOTAL - 1) == close(PEAK)


def test_cosine_ends_at_the_final_ratio():
    at = rate(name="cosine", warmup_steps=800, final_ratio=0.1)
    assert at(7800) == close(PEAK * 0.55)  # half-way between the peak and a tenth of it
    assert at(TOTAL) == close(PEAK * 0.1)
    assert PEAK * 0.1 < at(TOTAL - 1) < PEAK * 0.1001


def test_step_drops_every_step_every_steps_after_the_warmup():
    at = rate(name="step", warmup_steps=100, step_every=1000, decay_ratio=0.5)
    assert [at(step) for step in (1099, 1100, 2099, 2100)] == [close(PEAK * x) for x in (1, 0.5, 0.5, 0.25)]


def test_multi_step_defaults_are_those_of_deepseek_v2():
    at = rate(steps=1000, name="multi_step", warmup_steps=20)
    assert [at(step) for step in (599, 600, 899, 900, 999)] == [
        close(PEAK * x) for x in (1, 0.316, 0.316, 0.316**2, 0.316**2)
    ]
    at = rate(steps=100, name="multi_step", milestones=(0.29,))  # 0.29 * 100 is 28.999999999999996
    assert [at(28), at(29)] == [close(PEAK), close(PEAK * 0.316)]


def test_v3_has_the_rates_of_the_paper():
    """2.2e-4 up to 10T tokens, cosine to 2.2e-5 at 14.3T, constant for 333B, 7.3e-6 for the last 167B."""
    at = rate(name="v3", warmup_steps=2)
    assert [at(9999), at(10000)] == [close(2.2e-4)] * 2
    assert at(12150) == close((2.2e-4 + 2.2e-5) / 2)
    assert [at(14300), at(14632)] == [close(2.2e-5)] * 2
    assert [at(14633), at(TOTAL - 1)] == [close(7.3e-6)] * 2


def test_wsd_decays_in_the_last_fifth():
    at = rate(steps=1000, name="wsd", warmup_steps=100, decay_fraction=0.2, final_ratio=0.1)
    assert [at(799), at(800)] == [close(PEAK)] * 2
    assert at(900) == close(PEAK * 0.55)
    assert at(1000) == close(PEAK * 0.1)


def test_exponential_passes_through_the_corners_of_step():
    at = rate(name="exponential", warmup_steps=100, step_every=1000, decay_ratio=0.25)
    assert [at(step) for step in (100, 600, 1100)] == [close(PEAK * x) for x in (1, 0.5, 0.25)]


def test_polynomial_reaches_the_final_ratio_by_its_power():
    at = rate(steps=1100, name="polynomial", warmup_steps=100, power=2.0, final_ratio=0.2)
    assert at(600) == close(PEAK * (0.2 + 0.8 * 0.25))
    assert at(1100) == close(PEAK * 0.2)


def test_one_cycle_rises_from_a_25th_and_falls_to_the_final_ratio():
    at = rate(steps=1000, name="one_cycle", rise_fraction=0.4, final_ratio=0.1)
    assert [at(0), at(200), at(400)] == [close(PEAK * x) for x in (0.04, 0.52, 1)]
    assert [at(700), at(1000)] == [close(PEAK * x) for x in (0.55, 0.1)]


def test_warm_restarts_grow_longer():
    at = rate(steps=1000, name="warm_restarts", warmup_steps=50, step_every=100, cycle_growth=2.0, final_ratio=0.1)
    for start, length in ((50, 100), (150, 200), (350, 400), (750, 800)):
        assert at(start) == close(PEAK)
        assert at(start + length // 4) == close(PEAK * (0.55 + 0.45 * np.cos(np.pi / 4)))


def test_growing_restart_lengths_are_rounded_to_whole_steps():
    at = rate(steps=100, name="warm_restarts", step_every=6, cycle_growth=1.3, final_ratio=0.0)  # 6, 7.8, 10.14
    assert at(14) == at(24) == close(PEAK)
    assert at(6 + 7) == close(PEAK * (0.5 + 0.5 * np.cos(np.pi * 7 / 8)))


def test_the_last_restart_cycle_may_end_with_the_run():
    at = rate(steps=350, name="warm_restarts", warmup_steps=50, step_every=100, cycle_growth=2.0, final_ratio=0.0)
    assert at(150) == close(PEAK) and at(250) == close(PEAK / 2) and 0 < at(349) < PEAK * 1e-3


@pytest.mark.parametrize("warmup", [0, 10])
def test_range_rises_exponentially(warmup):
    """Steps count from 0, so the last of 301 is number 300."""
    at = rate(steps=301 + warmup, name="range", warmup_steps=warmup, final_ratio=1e-6)
    assert [at(warmup + step) for step in (0, 100, 200, 300)] == [close(PEAK * x) for x in (1e-6, 1e-4, 1e-2, 1)]


def test_a_warmup_longer_than_the_run_is_refused():
    with pytest.raises(UserError, match="warmup_steps"):
        rate(steps=100, name="cosine", warmup_steps=100)


def test_phases_that_overlap_are_refused():
    with pytest.raises(UserError, match="phases that end at steps 70, 60, 90 of 100"):
        rate(steps=100, name="multi_step", warmup_steps=70)
    with pytest.raises(
        UserError, match=r"schedule.name=multi_step .* 90, 10 of 100; .* change milestones, warmup_steps or"
    ):
        rate(steps=100, name="multi_step", warmup_steps=0, milestones=(0.9, 0.1))


def test_mtp_weight_and_bias_rate_switch_where_v3_switched():
    weight = schedules.mtp_weight(LossConfig(), 1000)
    assert [float(weight(step)) for step in (0, 675, 676, 999)] == [close(x) for x in (0.3, 0.3, 0.1, 0.1)]
    speed = schedules.bias_update_rate(RouterConfig(), 1000)
    assert [float(speed(step)) for step in (0, 965, 966, 999)] == [close(x) for x in (1e-3, 1e-3, 0, 0)]
    short = schedules.mtp_weight(LossConfig(mtp_switch=0.29), 100)  # 0.29 * 100 is 28.999999999999996
    assert [float(short(step)) for step in (28, 29)] == [close(0.3), close(0.1)]


def test_indexers_warm_up_for_a_share_of_the_run_or_not_at_all():
    warming_up = schedules.index_warmup(LossConfig(indexer_warmup=0.25), 1000)
    assert [warming_up(step) for step in (0, 249, 250, 999)] == [True, True, False, False]
    assert schedules.index_warmup(LossConfig(indexer_warmup=0.0), 1000) is None


def test_batch_grows_in_equal_stages_of_whole_microbatches():
    ramp = TrainConfig(steps=1000, batch_size=16, microbatch_size=2, ramp_start=4, ramp_stages=4, ramp_fraction=0.4)
    sizes = [schedules.batch_size(ramp, step) for step in (0, 99, 100, 199, 200, 300, 399, 400, 999)]
    assert sizes == [4, 4, 6, 6, 10, 12, 12, 16, 16]  # multiples of 2: not 7 or 13
    assert schedules.batch_size(dataclasses.replace(ramp, ramp_start=0), 0) == 16
    assert [schedules.microbatch_size(each) for each in (ramp, TrainConfig(batch_size=16))] == [2, 16]


def test_a_ramp_needs_microbatches():
    with pytest.raises(UserError, match="train.microbatch_size"):
        TrainConfig(batch_size=16, ramp_start=4, ramp_fraction=0.5)
