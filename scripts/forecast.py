"""Forecast a table: python scripts/forecast.py model=runs/quickstart/export input=FILE horizon=48 out=FILE

The file holds a time column and one column per metric (wide), or also an item column (long), or series (Parquet); the
metrics of one file or item are forecast together. out= ends in .csv or .parquet and gets one row per item, variate and
step: item_id, variate, timestamp, q0.1 ... q0.9. context= bounds the history used, by
default context and horizon fill the rows the model was trained on; time= and item= name columns, and
replace=true overwrites a former forecast. Up to 768 steps are forecast in one pass, more in blocks of block=768 whose
medians are the history of the next (block=0: always in one pass). known=a,b names columns whose future is known, such
as calendars or plans: they are not forecast but seen, and the file goes on for `horizon` rows after the others' last
value.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from data_pipelines.series import Series
from data_pipelines.sources import series_parquet, tables
from toto_train import hub
from toto_train.arguments import fail_on, parse
from toto_train.forecast import PUBLISHED, Forecaster

log = logging.getLogger("forecast")

CALENDAR_MONTHS = {series_parquet.FREQ_SECONDS[unit]: n for unit, n in (("M", 1), ("Q", 3), ("A", 12))}
"""Mean length in seconds of a calendar unit -> its months."""


def main(argv: list[str]) -> int:
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    args = parse(
        __doc__,
        argv,
        required={"model": str, "input": str, "horizon": int, "out": str},
        optional={"context": 0, "time": "", "item": "", "replace": False, "block": 768, "known": ""},
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
    forecaster = Forecaster(hub.load_pretrained(args["model"]), options=replace(PUBLISHED, block=args["block"] or None))
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
    s, covariates = split(s, args)
    for name, values in zip(s.variate_names, s.values, strict=True):
        known = values[np.isfinite(values)]
        if not known.size:
            raise ValueError(f"{args['input']}: {s.item_id}: variate {name} has no value at all; leave the column out")
        if known.min() == known.max():
            log.warning("%s: %s: variate %s is constant; so is its forecast", args["input"], s.item_id, name)
    horizon, context = args["horizon"], s.values[:, -args["context"] :]
    if covariates is not None:
        covariates = covariates[None, :, s.length - context.shape[1] :]
    quantiles = forecaster(context[None], horizon, covariates)[0]  # [9, V, horizon]
    table = {
        "item_id": np.full(s.variates * horizon, s.item_id),
        "variate": np.repeat(s.variate_names, horizon),
        "timestamp": np.tile(stamps(s, horizon), s.variates),
    }
    return pd.DataFrame(table | {f"q{q:g}": v.ravel() for q, v in zip(forecaster.levels, quantiles, strict=True)})


def split(s: Series, args: dict) -> tuple[Series, np.ndarray | None]:
    """What is to be forecast, up to its last value, and the columns of known= [E, length + horizon], None without."""
    if not args["known"]:
        return s, None
    names, where = args["known"].split(","), f"{args['input']}: {s.item_id}: known={args['known']}"
    if set(names) - set(s.variate_names) or not set(s.variate_names) - set(names):
        raise ValueError(f"{where} must name some, but not all, of the columns {', '.join(s.variate_names)}")
    rest = [i for i, name in enumerate(s.variate_names) if name not in names]
    length = int(np.flatnonzero(np.isfinite(s.values[rest]).any(0)).max(initial=0)) + 1
    if s.length < length + args["horizon"]:
        raise ValueError(
            f"{where}: the file has {s.length - length} rows after the last value to forecast from, horizon="
            f"{args['horizon']} needs as many; add rows with the known columns alone, or take a shorter horizon"
        )
    known = s.values[[s.variate_names.index(name) for name in names], : length + args["horizon"]]
    return replace(s, values=s.values[rest, :length], variate_names=tuple(s.variate_names[i] for i in rest)), known


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
