"""How far a run is, for a person: a progress bar, or log lines where no one watches."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

log = logging.getLogger(__name__)

QUIET_SECONDS = 15
"""Between two log lines."""


class Progress:
    """shown: whether this process is the one that tells; the others stay silent."""

    def __init__(self, step: int, total: int, shown: bool):
        self.shown, self.first, self.total = shown, step, total
        self.watched = shown and sys.stderr.isatty()
        self.bar = tqdm(total=total, initial=step, unit="step", disable=not self.watched, dynamic_ncols=True)
        self.begin = self.last_line = time.perf_counter()

    def advance(self) -> None:
        self.bar.update(1)

    def show(self, row: Mapping[str, Any], more: str) -> None:
        """A row of metrics.csv, and a text to end with."""
        if not self.shown:
            return
        step, now = row["step"], time.perf_counter()
        text = (
            f"loss {row['train/loss']:.4f}  lr {row['train/lr_normuon']:.3g}/{row['train/lr_adamw']:.3g}  "
            f"{row['perf/points_per_s'] / 1e3:,.0f}k points/s  data wait {row['perf/data_wait']:.0%}"
        )
        if "perf/mfu" in row:
            text += f"  MFU {row['perf/mfu']:.0%}"
        if row["train/skipped_steps"]:
            text += f"  skipped {row['train/skipped_steps']}"
        text += f"  {more}" if more else ""
        if self.watched:
            self.bar.set_postfix_str(text)  # the bar itself knows the time left
        elif now - self.last_line > QUIET_SECONDS or step == self.total:
            self.last_line = now
            left = (now - self.begin) / max(step - self.first, 1) * (self.total - step)
            log.info("step %d/%d  %s  %s left", step, self.total, text, tqdm.format_interval(left))

    def close(self) -> None:
        self.bar.close()
