"""report.html of a leaderboard: a single file that needs no network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from toto_train.evaluation import distributions
from toto_train.evaluation.distributions import Spread
from toto_train.evaluation.leaderboards.board import Board
from toto_train.evaluation.leaderboards.results import NAIVE
from toto_train.evaluation.page import COLOURS, bar, cell, fixed, heads, percent, plural, seconds, side, write_page
from toto_train.evaluation.plots import ACCENT, MUTED, SERIES
from toto_train.evaluation.report import calibration, facts_card, forecasts
from toto_train.evaluation.tables import Group, Rung, group_name, grouped, interval_name, ladder, left_out, order

FORECASTERS = 4
"""Most columns of a metric in the table of groups."""
CURVES = 300
"""Most thin lines in the plot of calibration."""
ROWS = 600
"""Most configurations in the table: half of them the best, half the worst, where there are more."""
TITLES = {"frequency": "interval", "variates": "number of variates"}
_LONG = {"CRPS": "CRPS (weighted quantile loss)", "SQL": "scaled quantile loss", "WQL": "weighted quantile loss"}


def write_report(path: Path, board: Board, facts: Mapping[str, str]) -> Path:
    """Write the page to the file `path`; it appears whole or not at all."""
    sections = [_headline(board), _notes(board)]
    if board.counted:
        sections += [_standing(board), _breakdown(board), _bands(board)]
    sections += [_split_off(board), _forecasts(board), _table(board), facts_card(facts)]
    return write_page(path, f"{board.model} on {board.benchmark.title}", sections)


def _headline(board: Board) -> str:
    cards = []
    for metric in list(board.ratios)[:2]:
        value = float(board.overall(metric)[board.model])
        better = "below" if value < 1 else "above"
        note = f"{abs(1 - value):.0%} {better} Seasonal Naive" if math.isfinite(value) else "no ratio"
        cards.append(_tile(f"Relative {metric}", fixed(value), note, bar(value)))
    share = np.nanmean(board.coverage(), axis=0) if board.counted else np.full(9, np.nan)
    lines = board.lines
    cards += [
        _tile("Inside the 80% band", percent(share[8] - share[0]), "of what came; 80% would be right"),
        _tile("Time a series", seconds(board.seconds_per_series), "to forecast one window of one variate"),
        _tile(
            "Configurations",
            f"{len(lines):,}",
            f"of {board.benchmark.size:,}; {plural(sum(line['windows'] for line in lines), 'window')} of "
            f"{plural(sum(_once(lines, 'series')), 'series')} in {plural(len(_once(lines, 'series')), 'dataset')}",
        ),
    ]
    return f'<section class="tiles">{"".join(cards)}</section>'


def _once(lines: Sequence[Mapping[str, Any]], key: str) -> list[int]:
    """Of every dataset, whatever its terms."""
    return [*{line["dataset"]: line[key] for line in lines}.values()]


def _tile(title: str, value: str, note: str, strip: str = "") -> str:
    return f'<div class="card"><h3>{title}</h3><p class="big">{value}</p>{strip}<p class="note">{note}</p></div>'


def _notes(board: Board) -> str:
    """What the overall scores leave out."""
    total = len(board.lines)
    return "".join(left_out(metric, n, total, "configuration") for metric, n in board.undefined().items() if n)


def _split_off(board: Board) -> str:
    """BOOM's second table."""
    part = board.summary.get("unscaled")
    if not part:
        return ""
    everyone = sorted(part["forecasters"].items(), key=lambda item: item[1]["CRPS"])
    rows = "".join(
        f"<tr><th>{escape(name)}</th>{''.join(f'<td>{fixed(v)}</td>' for v in scores.values())}</tr>"
        for name, scores in everyone
    )
    head = "".join(f"<th>{escape(key)}</th>" for key in everyone[0][1])
    return (
        f'<section><h2>Split off</h2><p class="lead">{plural(part["configurations"], "configuration")} where Seasonal '
        "Naive makes no error on the dataset or the series hardly vary: scores as they are, and the mean rank by CRPS."
        f'</p><div class="card scroll"><table><thead><tr><th></th>{head}</tr></thead><tbody>{rows}</tbody></table>'
        "</div></section>"
    )


def _colours(board: Board) -> dict[str, int]:
    """The model has the accent, the best others follow; Seasonal Naive has none, and those for which none is left."""
    return {name: k for k, name in enumerate(board.forecasters(COLOURS))}


def _standing(board: Board) -> str:
    """Scores of all forecasters in order, and how they rank over configurations."""
    colours, cards = _colours(board), []
    for metric in board.ratios:
        overall, intervals = board.overall(metric), board.summary.get(metric, {}).get("forecasters", {})
        rungs = []
        for name in map(str, overall.index):
            low, high = math.nan, math.nan
            if name in intervals and name != board.naive:
                low, high = (1 - intervals[name][f"skill_score_{end}"] for end in ("upper", "lower"))
            rungs.append(Rung(name, float(overall[name]), low, high, colours.get(name), name == board.model))
        if metric in ("CRPS", "MASE"):
            at = 0 if metric == "MASE" else 1
            rungs += [Rung(name, pair[at], note="published") for name, pair in board.published.items()]
        cards.append(ladder(f"Relative {_LONG.get(metric, metric)}", rungs))
    kind = "pair" if len(cards) == 2 else "triple"
    lead = "Below 1 is better than Seasonal Naive."
    if board.benchmark.higher:
        lead += " 1 less these is the skill score, with its 95% interval over tasks."
    if board.published:
        lead += " Published scores are of the whole benchmark and not measured here."
    plots = [_ranks(board, colours), _ratios(board)]
    return (
        f'<section><h2>Beside other forecasters</h2><p class="lead">{lead}</p>'
        f'<div class="{kind}">{"".join(cards)}</div><div class="pair below">{"".join(plots)}</div></section>'
    )


def _ranks(board: Board, colours: Mapping[str, int]) -> str:
    ranks = board.ranks
    mean = ranks.mean().sort_values()
    count = len(mean)
    rows = [
        Spread(
            name,
            ranks[name].to_numpy(float),
            float(mean[name]),
            f"{mean[name]:.2f} · {(count - mean[name]) / (count - 1):.0%}" if count > 1 else f"{mean[name]:.2f}",
            SERIES[colours[name]] if name in colours else MUTED,
            name == board.model,
        )
        for name in map(str, mean.index)
    ]
    plot = distributions.ranks(rows, "ranks", f"rank by {board.main}, 1 is best")
    caption = "<figcaption>Ranks<i>how often which; mean rank, duels won</i></figcaption>"
    return f'<figure class="card">{caption}{plot}</figure>'


def _ratios(board: Board) -> str:
    """The model's ratio in every configuration, by domain, or by what else there is."""
    kind = next((k for k in ("domain", "frequency", "term") if k in board.groups), "")
    groups = board.groups[kind] if kind else {"": board.counted}
    rows = []
    table = board.ratios[board.main][board.model]
    for name, lines in groups.items():
        names = [line["configuration"] for line in lines]
        mean = float(board.overall(board.main, names)[board.model])
        shown = group_name(kind, name)
        rows.append((mean, Spread(shown, table[names].to_numpy(float), mean, fixed(mean), ACCENT)))
    rows.sort(key=lambda row: row[0] if math.isfinite(row[0]) else math.inf)
    plot = distributions.spreads([row for _, row in rows], "ratios", f"{board.main}, Seasonal Naive = 1")
    by = f", by {TITLES.get(kind, kind)}" if kind else ""
    caption = f"<figcaption>Where it is better<i>every configuration{by}</i></figcaption>"
    return f'<figure class="card">{caption}{plot}</figure>'


def _breakdown(board: Board) -> str:
    names, metrics = board.forecasters(FORECASTERS), list(board.ratios)[:2]
    kinds: dict[str, dict[str, Group]] = {}
    for kind, groups in board.groups.items():
        title = TITLES.get(kind, kind)
        kinds[title] = {}
        for group in sorted(groups, key=lambda g: _place(kind, g)):
            lines = groups[group]
            of = [line["configuration"] for line in lines]
            means = {metric: board.overall(metric, of) for metric in metrics}
            spent = sum(line["seconds"] for line in lines) / max(sum(line["forecasts"] for line in lines), 1)
            kinds[title][group_name(kind, group)] = Group(
                len(of),
                sum(line["windows"] for line in lines),
                {metric: {name: float(mean[name]) for name in names} for metric, mean in means.items()},
                spent,
            )
    if not kinds:
        return ""
    note = "Relative to Seasonal Naive, averaged like the overall score."
    if len(board.ranks.columns) - 1 > len(names):
        note += f" The model and the {len(names) - 1} best others by {board.main}."
    return (
        f"<section><h2>By kind of configuration</h2>{grouped(kinds, metrics, names, 'configurations')}"
        f'<p class="note">{note}</p></section>'
    )


def _place(kind: str, group: str) -> tuple[int, str]:
    if kind == "variates":
        return int(group.split()[0]), group
    return order(kind, group)


def _bands(board: Board) -> str:
    """Calibration beside sharpness: narrow bands are worth something only where they hold what they promise."""
    coverage = board.coverage()
    each = coverage[np.random.Generator(np.random.Philox(0)).permutation(len(coverage))[:CURVES]]
    both = {board.model: np.nanmean(coverage, axis=0), "Seasonal Naive": np.nanmean(board.coverage(NAIVE), axis=0)}
    plot, table = calibration(both, list(each))
    widths = board.widths()
    known = widths[:, 0] > 0
    cloud = distributions.sharpness(coverage[:, 8] - coverage[:, 0], widths[:, 0], "sharp")
    rows = "".join(
        f"<tr><th>{band}</th><td>{percent(np.nanmean(coverage[:, 8 - k] - coverage[:, k]))}</td>"
        f"<td>{percent(np.nanmean(_inside(board, k)))}</td><td>{fixed(_geometric(widths[known, k]))}</td></tr>"
        for k, band in enumerate(("80%", "60%", "40%", "20%"))
    )
    return (
        '<section><h2>Calibration and sharpness</h2><p class="lead">How often the truth fell below each predicted '
        "quantile, the mean over configurations, and each configuration as a thin grey line: on the diagonal the bands "
        "are honest, flatter than it they are too narrow. Sharp bands are narrow ones; of two that are honest the "
        f'sharper is better.</p><div class="pair calibration">{plot}{table}</div>'
        f'<div class="pair calibration below"><figure class="card"><figcaption>Sharpness<i>a dot is a configuration</i>'
        f"</figcaption>{cloud}</figure>"
        '<div class="card scroll"><table><thead><tr><th>central band</th><th>holds</th><th>naive holds</th>'
        f"<th>width, naive = 1</th></tr></thead><tbody>{rows}</tbody></table>"
        '<p class="note">Widths are added up over all points of a configuration and divided by those of Seasonal '
        "Naive; the mean is geometric. Configurations without a ratio do not count.</p></div></div></section>"
    )


def _inside(board: Board, k: int) -> np.ndarray:
    naive = board.coverage(NAIVE)
    return naive[:, 8 - k] - naive[:, k]


def _geometric(values: np.ndarray) -> float:
    values = values[np.isfinite(values) & (values > 0)]
    return float(np.exp(np.log(values).mean())) if len(values) else math.nan


def _forecasts(board: Board) -> str:
    table = board.ratios[board.main][board.model]
    notes = {name: f"{board.main} {fixed(float(table[name]))} of Seasonal Naive's" for name in table.index}
    lead = (
        "Configurations from the best to the worst ratio; of each the best, the median and the worst variate of a "
        "window by weighted quantile loss, the figure at the right."
    )
    return forecasts(board.examples, lead, notes)


def _table(board: Board) -> str:
    """One row a configuration: scores of the model and of Seasonal Naive, coverage, time."""
    metrics = list(board.ratios)[:2]
    shown = list(board.lines)
    cut = ""
    if len(shown) > ROWS:
        place = board.ratios[board.main][board.model]
        shown.sort(key=lambda line: float(place.get(line["configuration"], math.inf)))
        shown = [*shown[: ROWS // 2], *shown[-ROWS // 2 :]]
        cut = f" The {ROWS // 2} best and the {ROWS // 2} worst; scores.json has all {len(board.lines):,}."
    body = []
    for line in shown:
        name, spread = line["configuration"], line["spread"]["model"]
        inside = (spread["below"][8] - spread["below"][0]) / spread["points"] if spread["points"] else math.nan
        cells = ""
        for metric in metrics:
            table, own = board.tables[board.benchmark.metrics[metric]], board.ratios[metric]
            mine, naive = (float(table[c].get(name, math.nan)) for c in (board.model, board.naive))
            ratio = float(own[board.model].get(name, math.nan))
            cells += (
                f"{cell(mine, fixed(mine), 'group')}{cell(naive, fixed(naive))}{cell(ratio, fixed(ratio), side(ratio))}"
                f'<td class="b">{bar(ratio)}</td>'
            )
        each = line["seconds_per_series"]
        body.append(
            f'<tr><th title="{escape(name)}">{escape(name)}</th>'
            f'<td class="text">{interval_name(line["frequency"])}</td>'
            f"{''.join(cell(line[key], f'{line[key]:,}') for key in ('horizon', 'windows', 'num_variates'))}"
            f"{cells}{cell(inside, percent(inside), 'group')}{cell(each, seconds(each))}</tr>"
        )
    over = "".join(f'<th colspan="4" class="group">{escape(metric)}</th>' for metric in metrics)
    names = ["configuration", "interval", "horizon", "windows", "variates"]
    names += ["model", "naive", "relative", ""] * len(metrics) + ["in 80%", "a series"]
    starts = (5, *(5 + 4 * k for k in range(1, len(metrics) + 1)))
    return (
        '<section><h2>By configuration</h2><p class="lead">Naive is Seasonal Naive; bars run from 0.25 to 2, the line '
        f'marks 1. A series is one variate of one window.{cut}</p><div class="card scroll tall">'
        f'<table class="sortable"><thead><tr>{"<th></th>" * 5}{over}<th></th><th></th></tr>'
        f"{heads(names, 2, starts)}</thead><tbody>{''.join(body)}</tbody></table></div></section>"
    )
