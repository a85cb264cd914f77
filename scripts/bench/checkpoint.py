"""Checkpoints of `small` (22 M parameters): standstill of training, time to write and read, memory of an export.

python scripts/bench/checkpoint.py [--quick] [--json FILE]

The state is what a run saves, weights and the optimizer's, 176 MB, on the file system of the temporary folder, each
file synced to it. Training (forward and backward of 4 rows of 2 variates x 512 steps, one thread) stands still while
`Saver.save` runs; what is beside a save overlaps with its thread. Sides take turns; medians of 3 (--quick) or 9. Memory
is the growth of the resident set of a process of its own over what it had when everything was imported.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from table import Row, main

from toto_train import checkpoint
from toto_train.checkpoint import Position
from toto_train.checkpoint_saver import Saver
from toto_train.cli import config_from_overrides
from toto_train.config import Config
from toto_train.model.toto import Toto
from toto_train.module import keep_freed_memory
from toto_train.objective import loss_sum
from toto_train.optim.recipe import build_optimizer

SMALL = config_from_overrides(["model=small"], Path(__file__).parents[2] / "configs").model

EXPORT = """
import re, sys
from pathlib import Path
from toto_train import checkpoint, hub

def memory(key):
    return int(re.search(key + r":\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

Path("/proc/self/clear_refs").write_text("5")
before = memory("VmRSS")
model, _ = checkpoint.load_model(sys.argv[1], "last")
hub.save_pretrained(model, sys.argv[2], "card")
print(memory("VmHWM") - before)
"""


def clock(job: Callable[[], object]) -> float:
    begin = time.perf_counter()
    job()
    return time.perf_counter() - begin


class Training:
    """A model, its optimizer and the saver of its run."""

    def __init__(self, run: Path, asynchronous: bool):
        self.run, self.config = run, Config(model=SMALL)
        self.config.checkpoint.asynchronous = asynchronous
        self.model = Toto.create(SMALL, 0)
        self.optimizer = build_optimizer(self.model.named_parameters(), self.config.optimizer, SMALL.num_layers)
        self.saver = Saver(run, self.config, "rows")
        self.position = Position()
        generator = torch.Generator().manual_seed(0)
        self.target = torch.randn(4, 2, 512, generator=generator)
        self.seen = torch.ones_like(self.target, dtype=torch.bool)
        self.ids = torch.zeros(4, 2, dtype=torch.long)

    def train(self) -> None:
        prediction = self.model(self.target, self.seen, self.seen, self.ids, labelled=True)
        loss_sum(prediction, self.target, self.seen, self.seen, SMALL.patch_size, 20.0)[0].backward()

    def save(self) -> None:
        self.position.step += 1
        self.saver.save(self.model, self.optimizer, self.position)

    def resume(self) -> None:
        checkpoint.resume(self.run, self.config, self.model, self.optimizer, "rows")


def measure(quick: bool) -> list[Row]:
    torch.set_num_threads(1)
    keep_freed_memory()
    times: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        beside, waiting = Training(folder / "beside", True), Training(folder / "waiting", False)
        tensors = checkpoint.state_of(waiting.model, waiting.optimizer)
        write, read = (partial(job, tensors, checkpoint_id=folder / "dcp") for job in (dcp.save, dcp.load))
        beside.save()  # makes the host copies
        beside.saver.wait()
        for _ in range(3 if quick else 9):
            times["training"] += [clock(beside.train) for _ in range(5)]
            times["standstill"].append(clock(beside.save))
            while not beside.saver.done:
                times["training beside"].append(clock(beside.train))
            beside.saver.wait()
            for side, job in (
                ("save", waiting.save), ("dcp.save", write), ("resume", waiting.resume), ("dcp.load", read),
            ):  # fmt: skip
                times[side].append(clock(job))
            shutil.rmtree(folder / "dcp")
        beside.saver.close()
        done = subprocess.run(
            [sys.executable, "-c", EXPORT, str(folder / "waiting"), str(folder / "export")],
            env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=True,
        )  # fmt: skip
    weights = 4 * sum(p.numel() for p in beside.model.parameters()) / 2**20
    ms = {side: 1e3 * statistics.median(values) for side, values in times.items()}
    return [
        Row("standstill for a save", ms["standstill"], ms["save"], "asynchronous=false", "ms", "<= 0.25"),
        Row("training beside a save", ms["training beside"], ms["training"], "without", "ms", "<= 1.5"),
        Row("save, with checksums", ms["save"], ms["dcp.save"], "dcp.save, without", "ms", "<= 2"),
        Row("resume, every byte checked", ms["resume"], ms["dcp.load"], "dcp.load, unchecked", "ms", "<= 4"),
        Row("memory of an export", int(done.stdout) / 2**20, weights, "the weights", "MiB", "<= 1.3"),
    ]


if __name__ == "__main__":
    main(__doc__, measure)
