"""What changes over a run, as functions of the step: learning rate, MTP weight, router bias rate, batch size.

Steps count from 0: step 0 is the first update.  Fractions in the config are of `train.steps`, so that a short run
passes through the same shape as a long one.
"""

from collections.abc import Callable

import optax

from deepseek_jax.config import LossConfig, OptimizerConfig, RouterConfig, ScheduleConfig, TrainConfig
from deepseek_jax.errors import UserError

# V3 (arXiv:2412.19437, section 4.2) states its phases in tokens, 14.8T in all: constant to 10T, cosine over the next
# 4.3T, then 333B at a tenth of the peak, which is 2.2e-4, and the last 167B at 7.3e-6.
V3_DECAY_FROM, V3_DECAY_TO, V3_LAST_FROM = 10 / 14.8, 14.3 / 14.8, 14.633 / 14.8
V3_LAST_RATIO = 7.3e-6 / 2.2e-4
ONE_CYCLE_START = 25  # ratio of the peak to the first rate; fastai's and PyTorch's default
# The setting that decides where the phases of a schedule end, as listed in an error message.
SHAPED_BY = {"multi_step": "milestones, ", "wsd": "decay_fraction, ", "one_cycle": "rise_fraction, "}


def learning_rate(optimizer: OptimizerConfig, steps: int) -> optax.Schedule:
    """The learning rate as a function of the step: a linear warm-up from 0, then the shape `optimizer.schedule.name`.

    UserError if the phases of the shape do not fit into `steps`.
    """
    schedule, peak = optimizer.schedule, optimizer.peak_lr
    pieces, ends = SHAPES[schedule.name](schedule, peak, steps)
    ends = [schedule.warmup_steps, *ends]
    if sorted(ends) != ends or ends[-1] >= steps:
        shaped_by = SHAPED_BY.get(schedule.name, "".join(f"parts.{name}, " for name in vars(schedule.parts)))
        raise UserError(
            f"optimizer.schedule.name={schedule.name} has phases that end at steps {', '.join(map(str, ends))} of "
            f"{steps}; they must rise and end before train.steps: change {shaped_by}warmup_steps or train.steps."
        )
    warmup = optax.linear_schedule(0.0, peak, schedule.warmup_steps)
    return optax.join_schedules([warmup, *pieces], ends)


# Each shape returns the pieces that follow the warm-up and the steps at which all but the last of them end.  A piece
# counts its steps from its own beginning, as optax.join_schedules expects.


def _constant(schedule: ScheduleConfig, peak: float, steps: int):
    return [optax.constant_schedule(peak)], []


def _cosine(schedule: ScheduleConfig, peak: float, steps: int):
    length = max(steps - schedule.warmup_steps, 1)
    return [optax.cosine_decay_schedule(peak, length, alpha=schedule.final_ratio)], []


def _step(schedule: ScheduleConfig, peak: float, steps: int):
    """A drop every `step_every` steps after the warm-up."""
    return [optax.exponential_decay(peak, schedule.step_every, schedule.decay_ratio, staircase=True)], []


def _multi_step(schedule: ScheduleConfig, peak: float, steps: int):
    """DeepSeek LLM and V2: x0.316 at 60% and at 90% of the tokens (arXiv:2405.04434, section 3.1.2)."""
    drops = range(len(schedule.milestones) + 1)
    return (
        [optax.constant_schedule(peak * schedule.decay_ratio**drop) for drop in drops],
        [round(milestone * steps) for milestone in schedule.milestones],
    )


def _v3(schedule: ScheduleConfig, peak: float, steps: int):
    start, end, last = (round(fraction * steps) for fraction in (V3_DECAY_FROM, V3_DECAY_TO, V3_LAST_FROM))
    return (
        [
            optax.constant_schedule(peak),
            optax.cosine_decay_schedule(peak, max(end - start, 1), alpha=schedule.final_ratio),
            optax.constant_schedule(peak * schedule.final_ratio),
            optax.constant_schedule(peak * V3_LAST_RATIO),
        ],
        [start, end, last],
    )


def _wsd(schedule: ScheduleConfig, peak: float, steps: int):
    """Warm-up, stable, decay (arXiv:2404.06395, section 4), with a linear decay."""
    decay = max(round(schedule.decay_fraction * steps), 1)
    return (
        [optax.constant_schedule(peak), optax.linear_schedule(peak, peak * schedule.final_ratio, decay)],
        [steps - decay],
    )


def _exponential(schedule: ScheduleConfig, peak: float, steps: int):
    """A smooth decay by the factor `decay_ratio` every `step_every` steps."""
    return [optax.exponential_decay(peak, schedule.step_every, schedule.decay_ratio)], []


def _polynomial(schedule: ScheduleConfig, peak: float, steps: int):
    length = max(steps - schedule.warmup_steps, 1)
    return [optax.polynomial_schedule(peak, peak * schedule.final_ratio, schedule.power, length)], []


def _one_cycle(schedule: ScheduleConfig, peak: float, steps: int):
    """Up from a 25th of the peak and down again, half a cosine each (arXiv:1708.07120; momentum is not cycled)."""
    rise = round(schedule.rise_fraction * steps)
    up = optax.cosine_decay_schedule(peak / ONE_CYCLE_START, max(rise, 1), alpha=ONE_CYCLE_START)
    down = optax.cosine_decay_schedule(peak, max(steps - rise, 1), alpha=schedule.final_ratio)
    return [up, down], [rise]


def _warm_restarts(schedule: ScheduleConfig, peak: float, steps: int):
    """Cosine cycles, each `cycle_growth` times as long as the one before (SGDR, arXiv:1608.03983)."""
    ends, lengths = [schedule.warmup_steps], [float(schedule.step_every)]
    while ends[-1] + round(lengths[-1]) < steps:
        ends.append(ends[-1] + round(lengths[-1]))
        lengths.append(lengths[-1] * schedule.cycle_growth)
    pieces = [optax.cosine_decay_schedule(peak, round(length), alpha=schedule.final_ratio) for length in lengths]
    return pieces, ends[1:]


def _range(schedule: ScheduleConfig, peak: float, steps: int):
    """Up by an equal factor per step, from `final_ratio` of the peak to the peak in the last one (arXiv:1506.01186)."""
    length = max(steps - 1 - schedule.warmup_steps, 1)
    return [optax.exponential_decay(peak * schedule.final_ratio, length, 1 / schedule.final_ratio)], []


SHAPES = {
    "constant": _constant,
    "cosine": _cosine,
    "step": _step,
    "multi_step": _multi_step,
    "v3": _v3,
    "wsd": _wsd,
    "exponential": _exponential,
    "polynomial": _polynomial,
    "one_cycle": _one_cycle,
    "warm_restarts": _warm_restarts,
    "range": _range,
    "plateau": _constant,  # train/optim/optimizer.py lowers it according to the training loss
}


def mtp_weight(loss: LossConfig, steps: int) -> optax.Schedule:
    """Weight of the multi-token prediction loss: in V3, 0.3 for the first 10T tokens and 0.1 after (section 4.2)."""
    return _switch(loss.mtp_weight, loss.mtp_weight_final, loss.mtp_switch, steps)


def index_warmup(loss: LossConfig, steps: int) -> Callable | None:
    """Whether sparse attention still attends to all keys, as a function of the step; None if it never does."""
    until = round(loss.indexer_warmup * steps)
    return (lambda step: step < until) if until else None


def bias_update_rate(router: RouterConfig, steps: int) -> optax.Schedule:
    """Update speed of the router bias: in V3, 0.001 for the first 14.3T tokens and 0 after (section 4.2)."""
    return _switch(router.bias_update_rate, 0.0, router.bias_update_until, steps)


def _switch(before: float, after: float, fraction: float, steps: int) -> optax.Schedule:
    return optax.join_schedules(
        [optax.constant_schedule(before), optax.constant_schedule(after)], [round(fraction * steps)]
    )


def microbatch_size(train: TrainConfig) -> int:
    """Sequences, or records, per forward pass."""
    return train.microbatch_size or train.batch_size


def batch_size(train: TrainConfig, step: int) -> int:
    """Sequences in the batch of a step: grows from `ramp_start` to `batch_size` in equal stages, in whole microbatches.

    V3 grew its batch from 3,072 to 15,360 sequences over the first 469B of 14.8T tokens (section 4.2).
    """
    ramp = _ramp_steps(train)
    if not train.ramp_start or step >= ramp:
        return train.batch_size
    stage = step * train.ramp_stages // ramp
    size = train.ramp_start + (train.batch_size - train.ramp_start) * stage // train.ramp_stages
    return size - size % train.microbatch_size


def microbatches(train: TrainConfig, step: int | None = None) -> int:
    """Microbatches, each a forward pass, of a step; None: of a step after the ramp."""
    size = train.batch_size if step is None else batch_size(train, step)
    return size // microbatch_size(train)


def sequences(train: TrainConfig) -> int:
    """Sequences, or records, of the whole run, summed stage by stage as there may be millions of steps."""
    ramp = _ramp_steps(train)
    begins = sorted({-(-stage * ramp // train.ramp_stages) for stage in range(train.ramp_stages)} | {ramp})
    ends = [*begins[1:], train.steps]
    return sum(batch_size(train, begin) * (end - begin) for begin, end in zip(begins, ends, strict=True))


def _ramp_steps(train: TrainConfig) -> int:
    return round(train.ramp_fraction * train.steps)
