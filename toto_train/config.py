"""Every setting of a run, typed. `config_check` builds these from a composed tree and checks them together."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import ClassVar

from omegaconf import OmegaConf

from toto_train.config_run import (
    CheckpointConfig,
    GuardConfig,
    HardwareConfig,
    LoggerConfig,
    ParallelConfig,
    ProfileConfig,
)


class ConfigError(ValueError):
    """A setting is wrong. The message lists every problem, one a line."""

    def __init__(self, problems: list[str]):
        self.problems = problems
        super().__init__("\n".join(f"config: {p}" for p in problems))

    def __reduce__(self) -> tuple[type[ConfigError], tuple[list[str]]]:
        return type(self), (self.problems,)  # an exception is otherwise made anew of its message, where ranks share it


GAVE_UP = 3
"""Exit status of a run that its guards stopped."""


class RunStopped(Exception):
    """Training ended before its last step; `status` is the exit status that says why."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status

    def __reduce__(self) -> tuple[type[RunStopped], tuple[str, int]]:
        return type(self), (str(self), self.status)


@dataclass
class ModelConfig:
    """Architecture; the released sizes are configs/model/*.yaml."""

    name: str = "nano"
    d_model: int = 64
    num_layers: int = 4
    num_heads: int = 2
    d_ff: int = 176
    """Hidden width of the gated MLP; the released sizes use 8/3 d_model rounded up to a multiple of 8."""
    norm_eps: float = 1e-4
    patch_size: int = 32
    layer_group_size: int = 0
    """Layers per group; 0 means one group of all layers."""
    num_variate_layers_per_group: int = 1
    """How many layers of each group attend over variates; the others attend over time."""
    variate_layer_first: bool = False
    """Whether the variate layers open a group or close it."""
    attn_bias: bool = True
    mlp_bias: bool = False
    qk_norm: bool = False
    """Whether queries and keys are RMS-normalised over the width of a head, without a weight."""
    residual_mult: float = 0.75
    residual_attn_ratio: float = math.sqrt(128 / math.log(128))
    """Strength of attention branches over MLP branches: sqrt(S/ln S) for a sequence of S patches."""

    @property
    def head_dim(self) -> int:
        return self.d_model // self.num_heads


@dataclass
class ObjectiveConfig:
    """Contiguous patch masking and the pinball loss."""

    max_span: int = 16
    """Longest masked span in patches (c_max); lengths are uniform in 1..max_span."""
    max_rate: float = 0.4
    """Largest masked share of a row's patches (p_max); rates are uniform in (0, max_rate)."""
    label_clamp: float = 20.0
    """Labels are clamped to +- this in asinh space, so one broken series cannot own a batch."""


@dataclass
class MixtureEntry:
    """One folder of shards in the training mixture, or families of the synthetic prior, made while training."""

    path: str = ""
    """Folder or URL of shards; empty where `families` are given."""
    weight: float = 1.0
    """Share of observed points, before normalisation over all entries."""
    include: list[str] = field(default_factory=lambda: ["*"])
    """Globs of source names (as in the folder's manifest) to take."""
    exclude: list[str] = field(default_factory=list)
    balance: str = "sqrt"
    """How the weight is divided over the folder's sources: equal, sqrt (of points) or points."""
    domain: str = ""
    """Only series of this domain (observability, general or synthetic); empty takes all."""
    min_interval: float = 0.0
    """Only series sampled every so many seconds or slower."""
    max_interval: float = 0.0
    """Only series sampled faster than every so many seconds; 0 means no bound."""
    downsample: int = 1
    """Means over blocks of this many steps replace the steps: the same series at a coarser interval."""
    augment: bool = True
    """Whether data.augment applies to this entry's rows."""
    families: dict[str, float] = field(default_factory=dict)
    """Families of the prior (docs/synthetic.md) -> share of the entry's observed points, before normalisation over
    them. The run makes their series itself, those that scripts/synthesize.py makes with its seed and data.length."""


@dataclass
class AugmentConfig:
    """How often training windows are altered; each probability is drawn anew for every window of every row."""

    mixup: float = 0.0
    """Probability that a window becomes a mix of itself and one or two others of its row and shape (TSMixup of Chronos,
    arXiv 2403.07815): each divided by its mean absolute value, Dirichlet(1.5) weights, in the window's own scale."""
    time_flip: float = 0.0
    """Probability that time runs backwards."""
    sign_flip: float = 0.0
    """Probability that the sign is turned."""
    amplitude: float = 0.0
    """Probability that the window is multiplied by a smooth positive curve through 2 to 5 log-normal knots."""
    amplitude_sigma: float = 0.3
    """Standard deviation of the logarithm of a knot."""
    censor: float = 0.0
    """Probability, for each variate, of being clipped from above or from below."""
    censor_share: float = 0.2
    """Largest share of a variate's observed values that clipping changes; shares are uniform up to it."""
    missing: float = 0.0
    """Probability, for each variate, of losing scattered values, contiguous gaps or both."""
    missing_share: float = 0.1
    """Largest share of a variate's observed values that is lost; shares are uniform up to it."""

    PROBABILITIES: ClassVar = ("mixup", "time_flip", "sign_flip", "amplitude", "censor", "missing")


@dataclass
class DataConfig:
    """Training rows: [variates, length] windows packed from the mixture."""

    mixture: dict[str, MixtureEntry] = field(default_factory=dict)
    variates: int = 32
    length: int = 4096
    """Steps of a row; a multiple of the model's patch size."""
    stages: dict[str, dict[str, float]] = field(default_factory=dict)
    """Curriculum: first row of a stage -> weights that change there, as in {2000000: {synthetic: 0.2}}; rows, not steps
    (step x global_rows), and a multiple of lanes. Weight 0 leaves an entry out for the stage."""
    lanes: int = 64
    """Row n reads from part n % lanes of every large source, so that a rank reads its share of the bytes; the number
    of ranks should divide it."""
    shuffle_rows: int = 64
    """Windows are shuffled within the neighbourhood of so many rows, and neighbourhoods as wholes: more mixes better,
    less reads fewer bytes at a time."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    on_fault: str = "stop"
    """A window that cannot be read: stop | quarantine (its slot stays empty and is counted)."""
    verify: str = "size"
    """What is checked before training: size of every shard | full (every byte against its checksum)."""
    workers: int = 1
    """Loader processes per rank; 0 reads in the training process."""
    prefetch: int = 8
    """Batches each worker keeps ready."""


@dataclass
class TasksConfig:
    """Fixed forecasting windows cut from a folder of shards, by GIFT-Eval's rules."""

    path: str = ""
    """Folder of shards; empty means no tasks."""
    include: list[str] = field(default_factory=lambda: ["*"])
    exclude: list[str] = field(default_factory=list)
    context: int = 2048
    """Most steps of history a model sees."""
    max_windows: int = 20
    """Most windows of one series (non-overlapping, at its end)."""
    limit: int = 0
    """Most windows of one task, a fixed random choice; 0 means all."""
    terms: list[str] = field(default_factory=lambda: ["short"])
    """short, medium and long: 1, 10 and 15 times the horizon of the frequency."""
    groups: str = "keep"
    """keep: the variates of a group are forecast together | split: each alone."""


@dataclass
class NorMuonConfig:
    """Matrices inside the stack."""

    lr: float = 0.652
    momentum: float = 0.96
    nesterov: bool = True
    beta2: float = 0.999
    eps: float = 1e-7
    weight_decay: float = 2e-8
    """Shrink per step at peak learning rate; independent of lr, follows the schedule."""
    cautious: bool = True
    """Decay only where weight and update agree in sign."""
    lr_rule: str = "spectral"
    """spectral sqrt(m/n) | unit_scaled sqrt(m) | original sqrt(max(1, m/n)) | match_rms_adamw 0.2 sqrt(max(m, n))."""
    orthogonalize_dtype: str = "auto"
    """bf16 | fp32 | auto (bf16 where the device multiplies it natively)."""
    normalize: bool = True
    """Even the rows by their second moment; false is plain Muon."""
    split: str = "none"
    """What is orthogonalised as a matrix of its own, with a shape factor of its own: none (every weight whole) | fused
    (q, k, v and gate, up apart) | heads (q, k and v by head besides)."""
    momentum_start: float = 0.85
    """Momentum of the first step, where it warms up."""
    momentum_warmup_steps: int = 0
    """Steps until momentum has risen, in a line, from momentum_start to its value; 0 turns the warm-up off."""
    replicated_state: str = "replicated"
    """Where ranks hold copies of a matrix (DDP), its momentum is replicated, or kept by its owner alone."""
    bucket_mib: int = 64
    """Most MiB of updates per rank in one exchange between ranks; less takes less memory and more exchanges."""


@dataclass
class AdamWConfig:
    """Everything else: input and output MLPs, biases, per-dimension scales; the stack's matrices too where asked to."""

    lr: float = 0.012
    beta1: float = 0.91
    beta2: float = 0.972
    eps: float = 1e-12
    weight_decay: float = 0.0


@dataclass
class OptimizerConfig:
    stack: str = "normuon"
    """What trains the matrices inside the stack: normuon | adamw (to compare with) | deepspeed_muon (DeepSpeed's own,
    under parallel.mode=deepspeed; it takes lr, momentum, weight_decay, cautious and lr_rule of `normuon`)."""
    normuon: NorMuonConfig = field(default_factory=NorMuonConfig)
    adamw: AdamWConfig = field(default_factory=AdamWConfig)
    clip_norm: float = 7.0
    """Global gradient norm bound; 0 turns clipping off."""


@dataclass
class ScheduleConfig:
    """Warm-up, stable, decay (WSD), in optimizer steps."""

    max_steps: int = 400_000
    warmup_steps: int = 6_000
    decay_steps: int = 10_500
    """Decay to zero over the last steps."""
    decay_shape: str = "linear"
    """linear | sqrt (1 - sqrt of the share that is done) | cosine."""


@dataclass
class Config:
    """One run."""

    name: str = ""
    """Name of the run and of its folder; empty means the model's name."""
    out: str = "runs"
    """Folder that holds run folders."""
    seed: int = 0
    global_rows: int = 64
    """Rows of one optimizer step, over all devices and accumulation steps."""
    micro_rows: int = 1
    """Rows of one forward pass on one device; accumulation follows from the two."""
    fresh: bool = False
    """Start over: an existing run folder of this name is replaced."""
    allow_data_change: bool = False
    """Resume although the data, or what chooses rows from them, are not those the run began with."""
    init_from: str = ""
    """Run, checkpoint or Hugging Face folder whose weights a new run starts from, at step 0 with a fresh optimizer."""
    plan: bool = False
    """Print what the run would cost and stop."""
    report: bool = True
    """After training: score the held-out tasks, write report.html and the Hugging Face export."""
    validate_every: int = 1000
    """Steps between validations; 0 means never."""
    ema_decay: float = 0.0
    """Above 0: an exponential moving average of the weights, W_ema <- decay W_ema + (1 - decay) W after every step, is
    what is validated and exported; one more copy of the weights, sharded as they are."""
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    data: DataConfig = field(default_factory=DataConfig)
    validation: TasksConfig = field(default_factory=TasksConfig)
    heldout: TasksConfig = field(default_factory=TasksConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    guards: GuardConfig = field(default_factory=GuardConfig)
    profile: ProfileConfig = field(default_factory=ProfileConfig)
    hardware: HardwareConfig = field(default_factory=HardwareConfig)

    @property
    def world(self) -> int:
        """Ranks of the run."""
        return self.parallel.devices * self.parallel.nodes

    @property
    def accumulation(self) -> int:
        """Micro batches of one rank in one optimizer step."""
        return self.global_rows // (self.micro_rows * self.world)

    @property
    def points_per_step(self) -> int:
        """Slots of one optimizer step: rows x variates x steps."""
        return self.global_rows * self.data.variates * self.data.length


def to_yaml(config: Config) -> str:
    return OmegaConf.to_yaml(OmegaConf.create(dataclasses.asdict(config)))
