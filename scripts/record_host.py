"""Record this machine's telemetry: python scripts/record_host.py seconds=3600 out=host.parquet [interval=1]"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from tqdm import tqdm

from data_pipelines.sources import host, series_parquet
from toto_train.arguments import fail_on, parse


def main(argv: list[str]) -> int:
    args = parse(__doc__, argv, required={"seconds": float, "out": str}, optional={"interval": 1.0})
    if args["seconds"] < args["interval"] or args["interval"] <= 0:
        raise ValueError("seconds must be at least one interval, and interval positive")
    out = Path(args["out"])
    if out.suffix != ".parquet" or out.is_dir():
        raise ValueError(f"out={out} must be the name of a file that ends in .parquet, which build_shards.py reads")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_name(f"{out.name}.tmp").touch()  # what cannot be written shows now rather than after the recording
    stopping: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):  # a stopped recording keeps what it has
        signal.signal(number, lambda n, _: stopping.append(n))
    total = int(args["seconds"] / args["interval"])
    with tqdm(total=total, unit="sample", disable=not sys.stderr.isatty()) as bar:
        start, columns = host.record(
            args["seconds"], args["interval"], lambda: bool(stopping), lambda n: bar.update(n - bar.n)
        )
    count = series_parquet.write(out, host.to_series(start, columns, args["interval"]))
    print(f"recorded {max(map(len, columns.values()), default=0)} samples in {count} groups -> {out}")
    return 0


if __name__ == "__main__":
    with fail_on(ValueError, OSError, name="record_host"):
        sys.exit(main(sys.argv[1:]))
