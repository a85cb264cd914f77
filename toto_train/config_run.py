"""Settings of how a run runs: devices, precision, checkpoints, guards, meters; part of `config.Config`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class ParallelConfig:
    mode: str = "single"
    """single | ddp (a copy of everything on every rank) | fsdp2 (weights, gradients, optimizer state sharded over all
    ranks) | hsdp (sharded over `shards` ranks, copied between those groups) | deepspeed (ZeRO, with AdamW only)."""
    devices: int = 1
    """Ranks on a node; 0 means every visible GPU."""
    nodes: int = 1
    shards: int = 0
    """hsdp: ranks that share one copy; 0 means those of a node."""
    zero_stage: int = 2
    """deepspeed: 1 shards the optimizer, 2 gradients too, 3 weights too."""
    precision: str = "fp32"
    """fp32 | bf16 (autocast; weights, gradients, scaler and loss stay fp32) | bf16_master (fsdp2, hsdp, deepspeed:
    weights are gathered and used in bf16, gradients reduced and masters kept in fp32)."""
    compile: bool = False
    activation_checkpointing: float = 0.0
    """Share of the layers, from the first, that keep only their input for the backward and compute the rest again:
    0 none, 1 every layer (least memory, about a quarter more time), between: what memory allows."""
    device: str = "auto"
    """auto | cpu | cuda."""
    rendezvous_timeout: float = 300.0
    """Seconds for every rank to come before those that did not are named and the run ends."""
    timeout: float = 600.0
    """Seconds without a completed step, validation batch or save after which every rank writes its stack and the run
    ends."""
    first_timeout: float = 1800.0
    """The same until the first step is done: compilation and the first messages between ranks take longer."""


@dataclass
class LoggerConfig:
    wandb: str = "off"
    """off | offline | online. metrics.csv is always written."""
    project: str = "toto-train"
    every_steps: int = 10


@dataclass
class CheckpointConfig:
    every_steps: int = 1000
    keep_last: int = 2
    """How many of the newest are kept; the one that validation chooses is kept besides."""
    keep_every: int = 0
    """Checkpoints of steps that are multiples of this are kept for good; 0 means none."""
    asynchronous: bool = True
    """Write beside training, from a copy in main memory; one save is in flight at most."""


@dataclass
class GuardConfig:
    """What stops a run that has gone wrong; a skipped step changes no weight and no optimizer state."""

    spike: float = 6.0
    """A step is skipped where its loss and its gradient norm both lie more than so many robust standard deviations
    (1.4826 x median absolute deviation) above their medians over the last `window` steps, or the loss alone more than
    three times as many; 0 turns it off."""
    window: int = 128
    """Steps the spike is judged by; none is skipped before half of them are seen."""
    max_skipped: int = 10
    """The run stops after so many skipped steps in a row, and names their rows."""


@dataclass
class ProfileConfig:
    """Traces for the eyes: files in the run folder's profile/."""

    start: int = 5
    """First step of the trace, counted from where the run starts or resumes."""
    steps: int = 0
    """Steps to trace with torch.profiler; 0 means none."""
    memory: bool = False
    """Whether to write a memory snapshot of the same steps (CUDA)."""


@dataclass
class HardwareConfig:
    """What plan=true prices, and the peak that the model FLOPs utilisation (MFU) refers to."""

    gpu: str = "auto"
    """auto (the device at hand) or a name in plan's table: a100, h100, h200, b200, ..."""
    mfu: float = 0.35
    """Share of the peak that a plan assumes; a measured run says what it reached."""
    dollars_per_hour: float = 0.0
    """Price of one GPU for an hour; 0 leaves the cost out."""
