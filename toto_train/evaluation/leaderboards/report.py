"""report.html of a leaderboard: a single file that needs no network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from toto_train.evaluation.leaderboards.board import Board
from toto_train.evaluation.page import COLOURS, bar, cell, fixed, heads, percent, plural, seconds, side, write_page
from toto_train.evaluation.sections import Bands, bands, facts_card, forecasts, ranks_card, ratios_card, tile
from toto_train.evaluation.tables import (
    Group,
    Rung,
    group_name,
    grouped,
    interval_name,
    ladder,
    left_out,
    order,
    time_card,
)

FORECASTERS = 4
"""Most columns of a metric in the table of groups."""
ROWS = 600
"""Most configurations in the table: half of them the best, half the worst, where there are more."""
TITLES = {"frequency": "interval", "variates": "number of variates"}
_LONG = {"CRPS": "CRPS (weighted quantile loss)", "SQL": "scaled quantile loss", "WQL": "weighted quantile loss"}


def write_report(path: Path, board: Board, facts: Mapping[str, str]) -> Path:
    """Write the page to the file `path`; it appears whole or not at all."""
    sections = [_headline(board), _notes(board)]
    if board.counted:
        colours = _colours(board)
        sections += [_standing(board, colours), _breakdown(board), _bands(board, colours)]
    sections += [_split_off(board), _forecasts(board), _table(board), facts_card(facts)]
    return write_page(path, f"{board.model} on {board.benchmark.title}", sections)


def _headline(board: Board) -> str:
    cards = []
    for metric in list(board.ratios)[:2]:
        value = float(board.overall(metric)[board.model])
        better = "below" if value < 1 else "above"
        note = f"{abs(1 - value):.0%} {better} Seasonal Naive" if math.isfinite(value) else "no ratio"
        cards.append(tile(f"Relative {metric}", fixed(value), note, bar(value)))
    share = Bands(board.coverage(board.model), board.widths(board.model)).mean()
    lines = board.lines
    cards += [
        tile("Inside the 80% band", percent(share[8] - share[0]), "of what came; 80% would be right"),
        tile("Time a series", seconds(board.seconds_per_series(board.model)), "to forecast one window of one variate"),
        tile(
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


def _standing(board: Board, colours: Mapping[str, int]) -> str:
    """Scores of all forecasters in order, and how they rank over configurations."""
    cards = []
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
    lead = "Below 1 is better than Seasonal Naive."
    if board.benchmark.higher:
        lead += " 1 less these is the skill score, with its 95% interval over tasks."
    if board.published:
        lead += " Published scores are of the whole benchmark and not measured here."
    if board.baselines:
        spent = {name: board.seconds_per_series(name) for name in (board.model, *board.baselines)}
        cards.append(time_card(spent, colours))
    kind = "ranking" if board.baselines and len(cards) == 3 else "triple" if len(cards) == 3 else "pair"
    plots = [ranks_card(board.ranks, colours, board.model, board.main), _ratios(board)]
    return (
        f'<section><h2>Beside other forecasters</h2><p class="lead">{lead}</p>'
        f'<div class="{kind}">{"".join(cards)}</div><div class="pair below">{"".join(plots)}</div></section>'
    )


def _ratios(board: Board) -> str:
    """The model's ratio in every configuration, by domain, or by what else there is."""
    kind = next((k for k in ("domain", "frequency", "term") if k in board.groups), "")
    table, groups = board.ratios[board.main][board.model], {}
    for name, lines in (board.groups[kind] if kind else {"": board.counted}).items():
        names = [line["configuration"] for line in lines]
        mean = float(board.overall(board.main, names)[board.model])
        groups[group_name(kind, name)] = table[names].to_numpy(float), mean
    return ratios_card(groups, board.main, f"configuration{f', by {TITLES.get(kind, kind)}' if kind else ''}")


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


def _bands(board: Board, colours: Mapping[str, int]) -> str:
    """Of the forecasters scored here."""
    found = {name: Bands(board.coverage(name), board.widths(name), colours.get(name)) for name in board.computed}
    return bands({"Seasonal Naive" if name == board.naive else name: of for name, of in found.items()}, "configuration")


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
