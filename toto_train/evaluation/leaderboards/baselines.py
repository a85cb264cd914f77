"""AutoTheta and FLAIR on a benchmark: a line a configuration, kept beside the datasets, so that the next model is
compared at once. The forecasters are those of local tasks (`peers`), measured as the model is.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from toto_train.evaluation import peers
from toto_train.evaluation.cache import held
from toto_train.evaluation.leaderboards.benchmarks import Benchmark, Configuration, Options
from toto_train.evaluation.leaderboards.measures import spread
from toto_train.evaluation.leaderboards.registry import BENCHMARKS
from toto_train.evaluation.leaderboards.windows import Rows, Windows, joined, rows_of
from toto_train.evaluation.lines import Lines
from toto_train.evaluation.metrics import VERSION
from toto_train.evaluation.processes import share

_CHUNK = 16
"""Forecasts that a process makes at once; a window is never split."""
Piece = tuple[Configuration, np.ndarray]
"""Some windows of a configuration."""


@dataclass(frozen=True)
class Baselines:
    """Statistical forecasters on the chosen configurations of a benchmark."""

    benchmark: str
    """Of BENCHMARKS."""
    options: Options
    chosen: Sequence[Configuration]
    context: int
    """Steps of history that they see."""
    folder: Path
    """Where their scores are kept."""
    workers: int

    def file(self, name: str) -> Path:
        """Where the scores of a baseline (of `peers.PEERS`) with these settings and versions are kept."""
        options = self.options.limit, self.options.split
        facts = [VERSION, peers.version(name), peers.RULES, self.context, *options]
        digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]
        return self.folder / f"{self.benchmark}-{name}-{digest}.jsonl"

    def left(self, name: str) -> list[Configuration]:
        """Configurations that are not scored yet, or on other data."""
        return self._left(Lines(self.file(name)))

    def _left(self, kept: Lines) -> list[Configuration]:
        fingerprint = BENCHMARKS[self.benchmark].fingerprint
        return [c for c in self.chosen if kept.lines.get(c.name, {}).get("data") != fingerprint(c, self.options)]

    def compute(self, name: str, progress: Callable[[int], None] = lambda count: None) -> dict[str, dict[str, Any]]:
        """Configuration -> scores, spread, forecasts, fallbacks and seconds of a baseline; what is missing is computed.

        progress: called with the number of forecasts (a variate of a window each) made so far. A second process waits
        until this one is done.
        """
        benchmark = BENCHMARKS[self.benchmark]
        with held(self.file(name)):
            kept = Lines(self.file(name))
            todo = self._left(kept)
            parts: dict[str, dict[int, tuple[Rows, int]]] = {}
            left: dict[str, int] = {}
            data: dict[str, str] = {}
            made = 0

            def pieces() -> Iterator[Piece]:
                for c in todo:  # opened one after another: to count the windows of thousands in advance takes minutes
                    data[c.name] = benchmark.fingerprint(c, self.options)
                    windows = benchmark.windows(c, self.options, benchmark.context)
                    left[c.name] = len(windows)
                    step = max(1, _CHUNK // int(windows.windows["variates"].max()))
                    for at in range(0, len(windows), step):
                        yield c, np.arange(at, min(at + step, len(windows)))

            scorer = partial(_scorer, name, self.benchmark, self.options, self.context)
            for (c, indices), (rows, fallbacks) in share(scorer, pieces(), self.workers):
                parts.setdefault(c.name, {})[int(indices[0])] = rows, fallbacks
                left[c.name] -= len(indices)
                made += len(rows.window)
                progress(made)
                if not left[c.name]:  # in order, whichever came first: the order of a sum decides its last digit
                    done = [part for _, part in sorted(parts.pop(c.name).items(), key=lambda item: item[0])]
                    kept.add(_line(benchmark, c, done) | {"data": data[c.name]})
            return {c.name: kept.lines[c.name] for c in self.chosen}


def _line(benchmark: Benchmark, c: Configuration, parts: Sequence[tuple[Rows, int]]) -> dict[str, Any]:
    rows = joined([rows for rows, _ in parts])
    return {
        "configuration": c.name,
        "scores": benchmark.measure(rows, rows.model, c.settings),
        "spread": spread(rows.model),
        "forecasts": len(rows.window),
        "fallbacks": sum(fallbacks for _, fallbacks in parts),
        "seconds": rows.seconds,
    }


def _scorer(
    name: str, benchmark: str, options: Options, context: int, rank: int
) -> Callable[[Piece], tuple[Rows, int]]:
    """In a process: the rows of a piece, and for how many of them Seasonal Naive stood in."""
    of, peer = BENCHMARKS[benchmark], peers.load(name)
    opened: list[tuple[Configuration, Windows]] = []  # the last one: pieces of a configuration follow each other

    def score(piece: Piece) -> tuple[Rows, int]:
        c, indices = piece
        if not opened or opened[0][0] != c:
            opened[:] = [(c, of.windows(c, options, of.context))]
        tasks, parts, fallbacks = opened[0][1], [], 0
        for i in indices.tolist():
            season, frequency = int(tasks.windows["season"][i]), tasks.tasks[0].frequency
            batch, past = tasks.read(np.array([i])), tasks.past(i)[:, -context:]
            begin = time.perf_counter()
            quantiles, failed = peer.forecast(past, batch.horizon, season, frequency)
            parts.append(rows_of(tasks, batch, quantiles[None], time.perf_counter() - begin))
            fallbacks += failed
        return joined(parts), fallbacks

    return score
