"""Find benchmark data in a corpus: python scripts/leakage.py corpus=DIR against=DIR[,DIR...] [out=leakage.csv]

corpus=    a dataset of shards, or a folder of files that build_shards.py reads: what a model is to be trained on
against=   the same, one or more separated by commas: what it is to be scored on
out=leakage.csv      the series over the limit, one a line, for build_shards.py ... quality.refuse=leakage.csv
max_leakage=0.1      the limit: a share of a series' own windows, found as they are or up to scale and offset

Overlap is no error: the exit status is 0 when the list is whole, be it empty or long. See docs/leakage.md.
"""

from __future__ import annotations

import csv
import itertools
import os
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from data_pipelines.leakage import LIST_COLUMNS, Index, read_series
from toto_train.arguments import fail_on, parse

OPTIONS = {"out": "leakage.csv", "max_leakage": 0.1}


@dataclass
class Tally:
    """One source of the corpus."""

    series: int = 0
    raw_windows: int = 0
    scaled_windows: int = 0
    over: Counter[str] = field(default_factory=Counter)
    """Series over the limit by the benchmark source they have most in common with."""
    raw: Counter[str] = field(default_factory=Counter)
    """Windows found, by benchmark source."""
    scaled: Counter[str] = field(default_factory=Counter)


def main(argv: list[str]) -> int:
    args = parse(__doc__, argv, required={"corpus": str, "against": str}, optional=OPTIONS)
    corpus, limit, out = args["corpus"], args["max_leakage"], Path(args["out"])
    against = [path for path in args["against"].split(",") if path]
    if not 0 <= limit < 1:
        raise ValueError(f"max_leakage={limit} is a share in [0, 1), such as {OPTIONS['max_leakage']}")
    if not against:
        raise ValueError("against= names no folder; give the benchmark series, separated by commas")
    if out.suffix != ".csv":
        raise ValueError(f"out={out} must end in .csv, so that quality.refuse= knows it as a list")
    if not out.parent.is_dir():
        raise ValueError(f"out={out}: {out.parent} is no folder; create it or choose another")
    if out.is_dir():
        raise ValueError(f"out={out} is a folder; give the name of a file")
    benchmark = itertools.chain.from_iterable(read_series(path, "against") for path in against)
    index = Index.build(tqdm(benchmark, "against", unit=" series", disable=not sys.stderr.isatty()))
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        tallies = compare(corpus, index, limit, partial)
        os.replace(partial, out)
    finally:
        partial.unlink(missing_ok=True)
    print(table(tallies))
    found = sum(t.over.total() for t in tallies.values())
    print(
        f"{found:,} of {sum(t.series for t in tallies.values()):,} series have more than {100 * limit:g} % of their "
        f"windows in {len(index.items):,} benchmark series: {out}"
    )
    if found:
        print(f"To leave them out of a dataset: python scripts/build_shards.py ... quality.refuse={out}")
    return 0


def compare(corpus: str, index: Index, limit: float, file: Path) -> dict[str, Tally]:
    """Write the series over the limit to a file, and count by source; holds one series at a time."""
    tallies: dict[str, Tally] = defaultdict(Tally)
    with open(file, "w", newline="", encoding="utf-8") as stream:
        rows = csv.writer(stream, lineterminator="\n")
        rows.writerow(LIST_COLUMNS)
        for s in tqdm(read_series(corpus, "corpus"), "corpus", unit=" series", disable=not sys.stderr.isatty()):
            found, tally = index.overlap(s), tallies[s.source]
            tally.series += 1
            tally.raw_windows += found.raw_windows
            tally.scaled_windows += found.scaled_windows
            for into, matches in ((tally.raw, found.raw), (tally.scaled, found.scaled)):
                for item, n in matches.items():
                    into[index.items[item][0]] += n
            if found.best is not None and max(found.raw_share, found.scaled_share) > limit:
                best = index.items[found.best]
                tally.over[best[0]] += 1
                shares = f"{found.raw_share:.4f}", f"{found.scaled_share:.4f}"
                rows.writerow((s.source, s.item_id, *shares, found.raw_windows, *best))
    return dict(sorted(tallies.items()))


def table(tallies: dict[str, Tally]) -> str:
    """A line for every pair of sources with a window in common, and one for every source of the corpus without."""
    lines: list[tuple[str, ...]] = [("corpus source", "series", "over", "raw %", "scaled %", "benchmark source")]
    for source, t in tallies.items():
        for name in sorted(t.raw.keys() | t.scaled.keys()) or [""]:
            pairs = (t.raw, t.raw_windows), (t.scaled, t.scaled_windows)
            shares = (f"{100 * found[name] / max(windows, 1):.2f}" for found, windows in pairs)
            lines.append((source, f"{t.series:,}", f"{t.over[name]:,}", *shares, name or "-"))
    wide = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = (
        "  ".join(
            cell.ljust(w) if k in (0, 5) else cell.rjust(w) for k, (cell, w) in enumerate(zip(line, wide, strict=True))
        )
        for line in lines
    )
    return "\n".join(map(str.rstrip, text))


if __name__ == "__main__":
    with fail_on(ValueError, OSError, name="leakage"):
        sys.exit(main(sys.argv[1:]))
