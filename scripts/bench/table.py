"""What the benchmarks share: rows, their table, their JSON. Run alone it describes the machine."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

PEERS = Path(__file__).parents[2] / ".venv-peers"


@dataclass
class Row:
    """Our figure beside the peer's or the limit's of the same run. target: '>= 20' or '<= 0.1', bounds ours / peer."""

    name: str
    ours: float
    peer: float | None
    """None where the peer is missing; `peer_name` says so then."""
    peer_name: str
    unit: str
    target: str
    ratio: float | None = field(init=False)
    met: bool | None = field(init=False)

    def __post_init__(self) -> None:
        sign, bound = self.target.split()
        self.ratio = self.met = None
        if self.peer is not None:
            self.ratio = float(self.ours / self.peer)
            self.met = self.ratio >= float(bound) if sign == ">=" else self.ratio <= float(bound)


def main(doc: str | None, measure: Callable[[bool], list[Row]]) -> None:
    """Command line of a benchmark: measure(quick) -> rows, printed as a Markdown table and, with --json, written."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller sizes, done within a minute")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to FILE")
    args = parser.parse_args()
    # packages of `make bench-peers` are found where this environment lacks them
    sys.path += map(str, PEERS.glob("lib/python*/site-packages"))
    rows = measure(args.quick)
    print(f"\n## {(doc or '').strip().splitlines()[0]}\n")
    print("| | ours | peer or limit | | unit | ours / peer | target | met |\n|---|--:|--:|---|---|--:|---|---|")
    for r in rows:
        met = {True: "yes", False: "no", None: "?"}[r.met]
        ours, peer, ratio = map(number, (r.ours, r.peer, r.ratio))
        print(f"| {r.name} | {ours} | {peer} | {r.peer_name} | {r.unit} | {ratio} | {r.target} | {met} |")
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


def number(value: float | None) -> str:
    """Three digits or whole numbers."""
    return "?" if value is None else f"{value:,.0f}" if value >= 1e3 else f"{value:.3g}"


def machine() -> str:
    """CPU model, cores, memory and the versions that figures depend on."""
    import numpy
    import psutil
    import torch

    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", info.read_text()) if info.is_file() else None
    cpu = found[1] if found else platform.processor() or platform.machine()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (
        f"{cpu}, {cores} of {os.cpu_count()} cores, "
        f"{psutil.virtual_memory().total / 2**30:.0f} GiB, {gpu}; Python {platform.python_version()}, "
        f"torch {torch.__version__} with {torch.get_num_threads()} threads, numpy {numpy.__version__}"
    )


if __name__ == "__main__":
    print(f"# Benchmarks\n\n{machine()}\n\nWritten by `make bench` with --quick; scripts/bench/ measures more without.")
