"""The schema of an experiment: every setting with its type and default; those of some sections are imported."""

import dataclasses
import math

import ml_collections

from deepseek_jax import part_settings, plugins
from deepseek_jax.checking import at_least, choice, fraction, parameter_group, pattern
from deepseek_jax.compress.config import ArithmeticConfig, PruneConfig, QuantizeConfig
from deepseek_jax.data.augment.config import AugmentConfig
from deepseek_jax.data.sets.config import DatasetConfig
from deepseek_jax.errors import UserError
from deepseek_jax.models import checks
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.hybrid.config import HybridConfig
from deepseek_jax.part_settings import Parts
from deepseek_jax.tasks.config import ObjectiveConfig
from deepseek_jax.tune.config import TuneConfig

# v3: the assistant answers directly.  v3.2, v4 (since V3.1): it reasons before the answer, or marks that it has not.
CHAT_TEMPLATES = ("v3", "v3.2", "v4")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The text to train on.  `source` is a corpus (prose, literature, code, mix, or operations, which are
    conversations) or a path: .txt, .jsonl, .csv, .parquet or a directory.
    """

    source: str = "mix"
    weights: str = "prose=0.5,literature=0.2,code=0.3"  # sources and their shares of tokens, used by source "mix"
    directory: str = ""  # where prepared data lives; empty: $DEEPSEEK_JAX_DATA or ~/.cache/deepseek_jax
    # Path of a tokenizer.json, beside which a tokenizer_config.json may name its bos and eos; empty: a BPE of
    # model.vocab_size entries trained on the source.
    tokenizer: str = ""
    text_field: str = "text"  # key of the text in JSONL, or column of CSV and Parquet; a.b: key b of what is under a
    # Chat template (CHAT_TEMPLATES) by which JSONL records are read as conversations, under the key "messages": only
    # what the assistant says is trained and scored.  Empty: records are text.
    chat: str = ""
    sequence_length: int = 4096
    fim_rate: float = 0.1  # share of documents rearranged as prefix-suffix-middle (V3, section 4.1)
    held_out: float = 0.02  # share of the text kept for evaluation: whole documents, books, services, packages
    workers: int = 0  # reader processes; 0 reads in a thread
    prefetch: int = 4  # microbatches read ahead; 0: none, each is read when asked for
    parts: Parts = Parts()  # settings of corpora that plugins add, from the experiment's section of this name

    def __post_init__(self):
        if not self.source.strip():  # an empty path would be the current directory
            raise UserError("data.source is empty; name a corpus, a file or a directory, or leave it out.")
        object.__setattr__(self, "parts", part_settings.of(self.shares, self.parts))
        at_least("data", self, 2, "sequence_length")
        at_least("data", self, 0, "workers", "prefetch")
        fraction("data", self, "fim_rate", "held_out")
        if self.chat:
            choice("data.chat", self.chat, CHAT_TEMPLATES)
            if not self.tokenizer:
                raise UserError("data.chat needs data.tokenizer: the tokenizer.json of the model that is to answer.")
            if self.fim_rate:
                raise UserError(f"data.fim_rate is {self.fim_rate}; conversations are not rearranged, set it to 0.")

    @property
    def shares(self) -> dict[str, float]:
        """source -> its share of the tokens; they sum to 1.  UserError if `weights` is malformed."""
        if self.source != "mix":
            return {self.source: 1.0}
        try:
            pairs = [part.rsplit("=", 1) for part in self.weights.split(",")]
            weights = {name.strip(): float(weight) for name, weight in pairs}
        except ValueError:
            raise UserError(f"data.weights is {self.weights!r}; write it as prose=0.5,code=0.5.") from None
        total = sum(weights.values())
        positive = min(weights.values()) > 0 and total < math.inf
        if len(weights) < len(pairs) or not all(weights) or not positive:
            raise UserError(f"data.weights is {self.weights!r}; name each source once, with a share above 0.")
        return {name: weight / total for name, weight in weights.items()}


# Each schedule, and which of the settings that not all of them use it uses.
SCHEDULES = {
    "constant": (),
    "cosine": ("final_ratio",),
    "step": ("decay_ratio", "step_every"),
    "multi_step": ("decay_ratio", "milestones"),
    "v3": ("final_ratio",),
    "wsd": ("final_ratio", "decay_fraction"),
    "exponential": ("decay_ratio", "step_every"),
    "polynomial": ("final_ratio", "power"),
    "one_cycle": ("final_ratio", "rise_fraction"),
    "warm_restarts": ("final_ratio", "step_every", "cycle_growth"),
    "plateau": ("decay_ratio", "step_every", "patience"),
    "range": ("final_ratio",),
}
OPTIMIZERS = {  # likewise
    "adam": ("b1", "b2", "eps", "nesterov"),
    "adamw": ("b1", "b2", "eps", "nesterov"),
    "muon": ("b1", "b2", "eps", "nesterov"),
    "sgd": ("b1", "nesterov"),
    "rmsprop": ("b1", "b2", "eps", "nesterov"),
    "adagrad": ("eps",),
    "lion": ("b1", "b2"),
}


NAMED = checks.OF_ATTENTION, checks.OF_FEED_FORWARD, OPTIMIZERS, SCHEDULES  # the parts that plugins can add to
PARTS = "parts"  # the section with the settings of such parts
OR_OWN = ", or one that a module of `plugins` adds"


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """Learning rate over a run.  Fractions are of `train.steps`; the shapes are in train/optim/schedules.py."""

    name: str = "cosine"  # one of SCHEDULES
    warmup_steps: int = 0
    # Share of the peak at the end of cosine, polynomial, one_cycle, wsd and each cycle of warm_restarts, and at the
    # start of range.
    final_ratio: float = 0.1
    decay_ratio: float = 0.316  # factor of each drop: at a milestone, every `step_every` steps, or on a plateau
    milestones: tuple[float, ...] = (0.6, 0.9)
    # Steps between drops (step; exponential falls as fast, smoothly), between checks (plateau) or of the first cycle
    # (warm_restarts).
    step_every: int = 1000
    decay_fraction: float = 0.2  # last share of the run in which wsd decays
    rise_fraction: float = 0.3  # first share of the run in which one_cycle rises
    power: float = 1.0  # of polynomial; 1 is linear
    cycle_growth: float = 1.0  # factor of each restart's length over the one before
    patience: int = 3  # checks without a better training loss before plateau lowers the rate
    parts: Parts = Parts()  # settings of a schedule that a plugin adds, from the experiment's section of this name

    def __post_init__(self):
        choice("optimizer.schedule.name", self.name, SCHEDULES, OR_OWN)
        at_least("optimizer.schedule", self, 0, "warmup_steps", "power")
        at_least("optimizer.schedule", self, 1, "step_every", "cycle_growth", "patience")
        fraction("optimizer.schedule", self, "final_ratio", "decay_ratio", "decay_fraction", "rise_fraction")
        by_ratio = dict.fromkeys(("step", "exponential", "plateau"), "decay_ratio")
        needed = (by_ratio | {"range": "final_ratio"}).get(self.name)
        if needed and not getattr(self, needed):
            raise UserError(f"optimizer.schedule.{needed} is 0, a factor of {self.name}; it must be above 0.")
        if self.name == "plateau" and self.decay_ratio == 1:
            raise UserError("optimizer.schedule.decay_ratio is 1, which lowers nothing on a plateau; set it below 1.")
        object.__setattr__(self, "parts", part_settings.of([self.name], self.parts))
        if self.name == "one_cycle" and self.warmup_steps:
            raise UserError(
                "optimizer.schedule.name is one_cycle, which has a rise of its own; set "
                "optimizer.schedule.warmup_steps=0."
            )


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The Optax chain: clipping by global norm, update direction, decoupled weight decay, schedule, groups."""

    name: str = "adamw"  # one of OPTIMIZERS; muon takes the matrices and leaves the rest to adamw (train/optim/muon.py)
    peak_lr: float = 2.2e-4
    b1: float = 0.9  # momentum for sgd and rmsprop
    b2: float = 0.95
    eps: float = 1e-8
    moment_dtype: str = "float32"  # bfloat16: momentum and second moments take half the memory (V3, section 3.3.2)
    nesterov: bool = False  # Nesterov's form of sgd's and rmsprop's momentum, and of adam's first moment
    weight_decay: float = 0.1
    clip_norm: float = 1.0  # 0 turns clipping off
    groups: tuple[str, ...] = ()  # "PATTERN lr=0.1 decay=0": factors for parameters whose path matches
    layer_decay: float = 1.0  # factor of the learning rate for each layer further from the output
    unfreeze: float = 0.0  # share of the run over which layers are unfrozen, from the output down; 0: all at once
    schedule: ScheduleConfig = ScheduleConfig()
    parts: Parts = Parts()  # likewise, of the optimizer and the schedule

    def __post_init__(self):
        choice("optimizer.name", self.name, OPTIMIZERS, OR_OWN)
        choice("optimizer.moment_dtype", self.moment_dtype, ("float32", "bfloat16"))
        at_least("optimizer", self, 0, "peak_lr", "weight_decay", "clip_norm", "eps")
        fraction("optimizer", self, "b1", "b2", "layer_decay", "unfreeze")
        for name in ("b1", "b2"):
            if getattr(self, name) == 1:
                raise UserError(f"optimizer.{name} is 1, a moment that never moves; set it below 1.")
        if self.nesterov and "nesterov" not in OPTIMIZERS[self.name]:
            raise UserError(f"optimizer.nesterov is set, but {self.name} does not use it; leave it out.")
        if self.name == "adam" and self.weight_decay:
            raise UserError(
                f"optimizer.weight_decay is {self.weight_decay}, but adam has no decoupled weight decay; "
                "choose optimizer.name=adamw or set optimizer.weight_decay=0."
            )
        for group in self.groups:
            parameter_group(group)
        if self.moment_dtype == "bfloat16":
            self._check_rounding()
        object.__setattr__(self, "parts", part_settings.of((self.name, self.schedule.name), self.parts))
        part_settings.hand_over(self, "schedule")

    def _check_rounding(self):
        """UserError if moments change by less per step than bfloat16 can represent, 0.4%, and so would never move."""
        kept = [name for name in ("b1", "b2") if name in OPTIMIZERS[self.name]]
        if not kept:
            raise UserError(
                f"optimizer.moment_dtype is bfloat16, in which the state of {self.name} would stand still, as it may "
                "change by too little per step; set optimizer.moment_dtype=float32."
            )
        for name in ["b2"] if self.name == "lion" else kept:  # lion stores nothing with b1
            if getattr(self, name) > 0.99:
                raise UserError(
                    f"optimizer.moment_dtype is bfloat16, in which moments of optimizer.{name}={getattr(self, name)} "
                    "would stand still, as they change by too little per step; set optimizer.moment_dtype=float32, or "
                    f"optimizer.{name} to at most 0.99."
                )


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Weights of the loss's parts beside next-token cross-entropy (V3, sections 2.1.2, 2.2 and 4.2; V3.2-Exp, 2.1)."""

    mtp_weight: float = 0.3
    mtp_weight_final: float = 0.1
    mtp_switch: float = 0.676  # share of the run after which `mtp_weight_final` holds (10T of 14.8T tokens)
    sequence_balance: float = 1e-4
    batch_balance: float = 0.0  # the same balance loss over a whole microbatch (V3, section 4.5.3)
    z_loss: float = 0.0
    indexer_weight: float = 1.0  # of the divergence (KL) between attention and what its lightning indexer predicts
    indexer_warmup: float = 0.0625  # share of the run with dense attention: V3.2 warmed up for 1,000 of 16,000 steps
    chunk_tokens: int = 2048  # tokens whose logits are in memory at a time

    def __post_init__(self):
        at_least("loss", self, 0, "mtp_weight", "mtp_weight_final", "sequence_balance", "batch_balance")
        at_least("loss", self, 0, "z_loss", "indexer_weight")
        at_least("loss", self, 1, "chunk_tokens")
        fraction("loss", self, "mtp_switch", "indexer_warmup")


@dataclasses.dataclass(frozen=True)
class RouterConfig:
    """Balancing without an auxiliary loss: after a step, bias += rate * sign(mean load - load) (V3, section 2.1.2)."""

    bias_update_rate: float = 1e-3
    bias_update_until: float = 0.966  # share of the run after which the rate is 0 (14.3T of 14.8T tokens)
    recentre_bias: bool = False  # subtract the mean bias after each update; DeepSeek does not
    # How many tokens a device may send to each other one's experts, as a multiple of what even loads would send; what
    # exceeds it is dropped and counted.  0: no limit, nothing is dropped.  Only where mesh.expert is above 1.
    capacity_factor: float = 0.0

    def __post_init__(self):
        at_least("router", self, 0, "bias_update_rate", "capacity_factor")
        fraction("router", self, "bias_update_until")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    steps: int = 1000
    batch_size: int = 8  # sequences a step, over all devices
    microbatch_size: int = 0  # sequences per forward pass; gradients add up over the batch; 0: the whole batch
    pipeline_microbatches: int = 0  # pieces of a forward pass if mesh.stage > 1; 0: as many as stages
    pipeline_rounds: int = 1  # interleaved chunks per stage: more shorten the pipeline's bubble but communicate more
    ramp_start: int = 0  # batch size at step 0, grown in equal stages of whole microbatches to `batch_size`; 0: no ramp
    ramp_stages: int = 4
    ramp_fraction: float = 0.0  # share of the steps over which the batch grows
    seed: int = 0  # of the parameters, the order of the data and the samples
    dtype: str = "float32"  # activations: float32, bfloat16; parameters and optimizer stay float32
    remat: str = "none"  # what the backward pass recomputes: none, dots (all but most matrix products), full
    ema_decay: float = 0.0  # of a moving average of parameters and batch-norm statistics; 0: none
    on_nonfinite: str = "stop"  # at NaN or infinity: stop ends the run, skip drops the step and counts it

    def __post_init__(self):
        at_least("train", self, 1, "steps", "batch_size", "ramp_stages", "pipeline_rounds")
        at_least("train", self, 0, "microbatch_size", "pipeline_microbatches", "ramp_start", "seed")
        choice("train.dtype", self.dtype, ("float32", "bfloat16"))
        choice("train.remat", self.remat, ("none", "dots", "full"))
        choice("train.on_nonfinite", self.on_nonfinite, ("stop", "skip"))
        fraction("train", self, "ramp_fraction", "ema_decay")
        if self.ema_decay == 1:
            raise UserError("train.ema_decay is 1, an average that never moves; it must be below 1.")
        if self.ramp_start and not 0 < self.microbatch_size <= self.ramp_start <= self.batch_size:
            raise UserError(
                f"train.ramp_start is {self.ramp_start}; it grows by whole microbatches, so set train.microbatch_size "
                "to at most that, and train.batch_size to at least that."
            )
        if self.ramp_start and not self.ramp_fraction:
            raise UserError(
                f"train.ramp_start is {self.ramp_start}, but train.ramp_fraction, the share of the run over which the "
                "batch grows, is 0; set it too."
            )
        for name in ("batch_size", "ramp_start"):
            if self.microbatch_size and getattr(self, name) % self.microbatch_size:
                raise UserError(
                    f"train.{name} ({getattr(self, name)}) must be a multiple of "
                    f"train.microbatch_size ({self.microbatch_size})."
                )


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    every: int = 0  # steps between evaluations; 0: only at the end
    batch_size: int = 0  # sequences, or records; 0: train.batch_size, in its microbatches
    batches: int = 0  # of the held-out split at each evaluation during training; 0: all
    final_batches: int = 0  # at the final evaluation; 0: all, and baselines are scored on the same data
    samples: int = 2  # texts generated at the end
    sample_tokens: int = 96

    def __post_init__(self):
        at_least("eval", self, 0, "every", "batch_size", "batches", "final_batches", "samples")
        at_least("eval", self, 1, "sample_tokens")


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    every: int = 0  # steps; 0: only at the end, on SIGTERM and at the best evaluation
    keep: int = 2  # newest kept, beside the best

    def __post_init__(self):
        at_least("checkpoint", self, 0, "every")
        at_least("checkpoint", self, 1, "keep")


@dataclasses.dataclass(frozen=True)
class LogConfig:
    every: int = 10  # steps between rows of metrics.jsonl
    tensorboard: bool = True
    wandb_project: str = ""  # needs `pip install wandb`; empty: off

    def __post_init__(self):
        at_least("log", self, 1, "every")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis of the mesh; one may be -1: all that are left.  parallel/rules.py says what each shards.

    The first axes run across the slowest links between devices, the last ones need the fastest.
    """

    stage: int = 1  # layers, as the stages of a pipeline
    data: int = -1  # sequences; every device has all parameters
    fsdp: int = 1  # sequences; parameters are gathered a layer at a time
    context: int = 1  # the tokens of each sequence
    expert: int = 1  # routed experts; sequences outside of them
    tensor: int = 1  # heads, feed-forward width, vocabulary

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if (size := getattr(self, field.name)) < 1 and size != -1:
                raise UserError(f"mesh.{field.name} is {size}; it must be at least 1, or -1 for what is left.")


@dataclasses.dataclass(frozen=True)
class StoppingConfig:
    """Which evaluation is the best, and when waiting for a better one ends (early stopping)."""

    metric: str = "val/loss"  # a number that evaluations write to metrics.jsonl
    highest: bool = False  # whether more is better
    patience: int = 0  # evaluations without a better one before the run stops and restores the best; 0: never
    min_delta: float = 0.0  # an evaluation counts as better only by more than this

    def __post_init__(self):
        at_least("stopping", self, 0, "patience", "min_delta")


@dataclasses.dataclass(frozen=True)
class StartConfig:
    """What a run begins from; ignored if the run resumes from a checkpoint of its own."""

    checkpoint: str = ""  # a run directory, what `convert --to orbax` wrote, a released directory, a .pth; empty: none
    best: bool = False  # of a run directory: the checkpoint of the best evaluation instead of the newest
    step: int = 0  # of a run directory: the checkpoint of this step; 0: the newest
    # Of a run directory: everything that the run would resume from, not only its model.  Steps are counted on from
    # there, so that train.steps includes those of the other run.
    full_state: bool = False
    # Regular expression: parameters whose path matches are initialised anew instead of read, as in "^head$|embedding".
    fresh: str = ""

    def __post_init__(self):
        at_least("start", self, 0, "step")
        pattern("start.fresh", self.fresh)


def _check_together(experiment):
    """UserError for settings of different sections that contradict each other."""
    if experiment.stopping.patience and not experiment.eval.every:
        raise UserError("stopping.patience counts evaluations, and eval.every is 0: there are none before the end.")
    by_layer = experiment.optimizer.layer_decay != 1 or experiment.optimizer.unfreeze
    if experiment.tune.experts and by_layer:
        raise UserError(
            "optimizer.layer_decay and optimizer.unfreeze treat layers as a whole; leave them out with tune.experts."
        )


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A language model."""

    family: str = "language_model"
    plugins: tuple[str, ...] = ()  # modules with parts of your own, as in parts.gated (plugins.py, parts.py)
    parts: Parts = Parts()  # settings of the parts of these modules, by name: --config.parts.moe_z.weight=1e-2
    model: ModelConfig = ModelConfig()
    start: StartConfig = StartConfig()
    tune: TuneConfig = TuneConfig()
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    loss: LossConfig = LossConfig()
    router: RouterConfig = RouterConfig()
    prune: PruneConfig = PruneConfig()
    quantize: QuantizeConfig = QuantizeConfig()
    arithmetic: ArithmeticConfig = ArithmeticConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    stopping: StoppingConfig = StoppingConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()
    mesh: MeshConfig = MeshConfig()

    def __post_init__(self):
        part_settings.hand_over(self, "model", "data", "optimizer")
        _check_together(self)


@dataclasses.dataclass(frozen=True)
class SupervisedExperiment:
    """The hybrid network on a labelled set."""

    family: str = "supervised"
    plugins: tuple[str, ...] = ()  # modules with parts of your own, as in parts.gated (plugins.py, parts.py)
    parts: Parts = Parts()  # settings of the parts of these modules, by name: --config.parts.moe_z.weight=1e-2
    model: HybridConfig = HybridConfig()
    start: StartConfig = StartConfig()
    tune: TuneConfig = TuneConfig()
    dataset: DatasetConfig = DatasetConfig()
    augment: AugmentConfig = AugmentConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    prune: PruneConfig = PruneConfig()
    quantize: QuantizeConfig = QuantizeConfig()
    arithmetic: ArithmeticConfig = ArithmeticConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    stopping: StoppingConfig = StoppingConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()
    mesh: MeshConfig = MeshConfig()

    def __post_init__(self):
        part_settings.hand_over(self, "dataset", "optimizer")
        _check_together(self)
        for name in ("remat", "pipeline_microbatches", "pipeline_rounds"):
            given, default = getattr(self.train, name), getattr(TrainConfig(), name)
            if given != default:
                raise UserError(
                    f"train.{name} is {given}, but the hybrid network does not use it; leave it at {default}."
                )


AnyExperiment = Experiment | SupervisedExperiment
FAMILIES = {"language_model": Experiment, "supervised": SupervisedExperiment}


def default_config(family: str = "language_model") -> ml_collections.ConfigDict:
    """A family's defaults as a locked, typed ConfigDict: what a configs/*.py changes and returns from `get_config()`.

    Families: language_model (DeepSeek's line) and supervised (the hybrid network on images, text classes, boxes and
    numbers).
    """
    return ml_collections.ConfigDict(dataclasses.asdict(FAMILIES[family]())).lock()


def add_plugins(config: ml_collections.ConfigDict, *modules: str):
    """Adds modules to config.plugins, and the settings of their parts to the config, as config.parts.NAME.

    UserError if a module cannot be imported.
    """
    config.plugins = (*config.plugins, *(module for module in modules if module not in config.plugins))
    give_settings(config, "a config")


def give_settings(config: ml_collections.ConfigDict, origin: str):
    """Makes config.parts the settings of the parts of config.plugins: those it has, else their defaults."""
    plugins.load(config.plugins, origin)
    settings = dataclasses.asdict(part_settings.section(part_settings.added_by(config.plugins))())
    known = config.get("parts", {})
    with config.unlocked():
        config.parts = ml_collections.ConfigDict(settings).lock()
    for name in settings.keys() & known.keys():
        config.parts[name].update(known[name])


def plain(experiment: AnyExperiment) -> dict:
    """The experiment as nested dicts, as config.json has it.  Without settings of parts there is no section `parts`."""
    values = dataclasses.asdict(experiment)
    return {
        key: value if key == PARTS else _without_parts(value) for key, value in values.items() if key != PARTS or value
    }


def _without_parts(value):
    """A section without the copies of settings of parts that it and its own sections were handed."""
    if not isinstance(value, dict):
        return value
    return {key: _without_parts(inner) for key, inner in value.items() if key != PARTS}
