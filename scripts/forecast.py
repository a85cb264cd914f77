"""Forecast a table: python scripts/forecast.py model=runs/quickstart/export input=FILE horizon=48 out=FILE

The file holds a time column and one column per metric (wide), or also an item column (long), or series (Parquet); the
metrics of one file or item are forecast together. out= ends in .csv or .parquet and gets one row per item, variate and
step: item_id, variate, timestamp, q0.1 ... q0.9. context= bounds the history used, by
default context and horizon fill the rows the model was trained on; time= and item= name columns, and
replace=true overwrites a former forecast.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from data_pipelines.series import Series
from data_pipelines.sources import series_parquet, tables
from toto_train import hub
from toto_train.arguments import fail_on, parse
from toto_train.forecast import Forecaster

log = logging.getLogger("forecast")

CALENDAR_MONTHS = {series_parquet.FREQ_SECONDS[unit]: n for unit, n in (("M", 1), ("Q", 3), ("A", 12))}
"""Mean length in seconds of a calendar unit -> its months."""


def main(argv: list[str]) -> int:
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    args = parse(
        __doc__,
        argv,
        required={"model": str, "input": str, "horizon": int, "out": str},
        optional={"context": 0, "time": "", "item": "", "replace": False},
    )
    out = Path(args["out"])
    if args["horizon"] < 1 or args["context"] < 0:
        wrong = "horizon" if args["horizon"] < 1 else "context"
        raise ValueError(f"{wrong}={args[wrong]} must be at least 1")
    if out.suffix not in (".csv", ".parquet"):
        raise ValueError(f"out={out} must end in .csv or .parquet")
    if not out.parent.is_dir():
        raise ValueError(f"out={out}: the folder {out.parent} does not exist")
    if out.exists() and (not args["replace"] or out.resolve() == Path(args["input"]).resolve()):
        raise ValueError(f"out={out} exists; choose another name, or replace a former forecast with replace=true")
    forecaster = Forecaster(hub.load_pretrained(args["model"]))
    trained = hub.context_length(args["model"])
    args["context"] = args["context"] or max(trained - args["horizon"], trained // 2)
    if args["context"] + args["horizon"] > trained:
        log.warning("context + horizon are longer than the %d steps the model was trained on", trained)
    frames = [forecast(forecaster, s, args) for s in read(args)]
    table = pd.concat(frames, ignore_index=True)
    temporary = out.with_name(f"{out.stem}.tmp{out.suffix}")
    try:
        table.to_csv(temporary, index=False) if out.suffix == ".csv" else table.to_parquet(temporary, index=False)
        os.replace(temporary, out)
    except OSError as error:
        raise OSError(f"cannot write out={out}: {error.strerror}") from error
    print(f"forecast {len(frames)} series, {args['horizon']} steps each -> {out}")
    return 0


def read(args: dict) -> Iterator[Series]:
    path = Path(args["input"])
    if not path.is_file():
        raise ValueError(f"input={path} does not exist")
    if path.suffix == ".parquet" and tables.is_series_file(path):
        return series_parquet.read(path)
    return tables.read(path, path.stem, time=args["time"], item=args["item"])


def forecast(forecaster: Forecaster, s: Series, args: dict) -> pd.DataFrame:
    """One row per variate and step."""
    for name, values in zip(s.variate_names, s.values, strict=True):
        known = values[np.isfinite(values)]
        if not known.size:
            raise ValueError(f"{args['input']}: {s.item_id}: variate {name} has no value at all; leave the column out")
        if known.min() == known.max():
            log.warning("%s: %s: variate %s is constant; so is its forecast", args["input"], s.item_id, name)
    horizon, context = args["horizon"], s.values[:, -args["context"] :]
    quantiles = forecaster(context[None], horizon)[0]  # [9, V, horizon]
    table = {
        "item_id": np.full(s.variates * horizon, s.item_id),
        "variate": np.repeat(s.variate_names, horizon),
        "timestamp": np.tile(stamps(s, horizon), s.variates),
    }
    return pd.DataFrame(table | {f"q{q:g}": v.ravel() for q, v in zip(forecaster.levels, quantiles, strict=True)})


def stamps(s: Series, horizon: int) -> np.ndarray:
    """Time stamps of the forecast; steps after the last one, from 1, where the start is unknown."""
    steps = np.arange(1, horizon + 1)
    if s.start is None:
        return steps
    if months := CALENDAR_MONTHS.get(s.interval):  # each counted from the start: a month's end stays a month's end
        ahead = [pd.Timestamp(s.start) + pd.DateOffset(months=months * int(s.length - 1 + k)) for k in steps]
        return np.array(ahead, dtype="datetime64[ns]")
    since = (s.length - 1 + steps) * s.interval * 1e9
    return np.datetime64(s.start, "ns") + since.astype("timedelta64[ns]")


if __name__ == "__main__":
    with fail_on(ValueError, OSError, name="forecast"):
        sys.exit(main(sys.argv[1:]))
