"""What a round of a search has found, as one page: finals, importances, slices, parallel coordinates, all trials."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import optuna
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from optuna.trial import FrozenTrial, TrialState

from toto_train.evaluation.page import write_page
from toto_train.evaluation.plots import ACCENT, GRID, MUTED, SECOND, STYLE, svg
from toto_train.search import Search
from toto_train.search_finals import BASE, LEVEL, Final, Values, noise

LEAST = 8
"""Complete trials from which importances say anything."""


def write_report(search: Search, path: Path) -> Path:
    """The page as things stand; a round that is under way has one too."""
    study = search.study()
    trials = study.get_trials(deepcopy=False)
    ended = search.finished()
    done = [t for t in ended if t.params]
    base = next((t.value for t in ended if t.user_attrs.get("values") == {}), None)
    finals = search.finals()
    sections = [_summary(search, trials, finals), _finals(finals)]
    if done:
        dashed = "<p>Dashed: the settings as they were.</p>"
        sections.append(f"<section><h2>Every setting alone</h2>{_slices(done, base)}{dashed}</section>")
        sections.append(f"<section><h2>All settings together</h2>{_parallel(done)}</section>")
    if len(done) >= LEAST:
        sections.append(f"<section><h2>Importance</h2>{_importances(study)}</section>")
    sections.append(_table(trials))
    return write_page(path, f"search: {search.round.name}", sections)


def _summary(search: Search, trials: Sequence[FrozenTrial], finals: Sequence[Final]) -> str:
    counts = {state.name.lower(): sum(t.state == state for t in trials) for state in TrialState}
    said = ", ".join(f"{n} {name}" for name, n in counts.items() if n)
    won = search.won()
    verdict = "The finals are not complete." if won is None else _verdict(won, finals)
    count = f"{search.seeds} new seeds of" if search.seeds > 1 else "with the same seed"
    return (
        f"<section><p>{said} of {search.trials} trials by {search.sampler}, then {count} the best "
        f"{search.finalists} and the settings as they were. Score: geometric mean of MASE and MWQL over Seasonal "
        f"Naive's on the validation tasks; lower is better.</p><p>{verdict}</p></section>"
    )


def _verdict(won: Final, finals: Sequence[Final]) -> str:
    base, known = next(f for f in finals if f.name == BASE), noise(finals)
    gain = base.mean - won.mean
    if known is None:
        best = "No choice is" if won.name == BASE else f"{escape(won.name)} is {gain:.4f}"
        return f"{best} lower than the settings as they were. One seed: this may be noise."
    bar = f"{known.bar:.4f}, which chance alone exceeds in {LEVEL:.0%} of rounds at most"
    if won.name == BASE:
        return f"No choice is lower than the settings as they were by more than {bar}; they stay."
    return f"{escape(won.name)} wins: {gain:.4f} lower than the settings as they were, and more than {bar}."


def _finals(finals: Sequence[Final]) -> str:
    if not finals:
        return ""
    base, known = next((f for f in finals if f.name == BASE), None), noise(finals)
    error = f" ± {known.error:.4f}" if known else ""
    rows = []
    for f in finals:
        gain = f"{base.mean - f.mean:+.4f}{error}" if base is not None and base is not f else ""
        scores = ", ".join(f"{s:.4f}" for s in f.scores)
        rows.append(([f.name, f"{f.mean:.4f}", gain, scores], f.values))
    return f"<section><h2>Finals</h2>{_card(('choice', 'mean', 'lower than base ± se', 'by seed'), rows)}</section>"


def _table(trials: Sequence[FrozenTrial]) -> str:
    rows = []
    for t in sorted(trials, key=lambda t: (t.state != TrialState.COMPLETE, t.value or 0.0, t.number)):
        score = f"{t.value:.4f}" if t.state == TrialState.COMPLETE else t.user_attrs.get("why", "")
        minutes = f"{t.duration.total_seconds() / 60:.1f}" if t.duration else ""
        rows.append(([str(t.number), t.state.name.lower(), score, minutes], t.user_attrs.get("values", {})))
    return f"<section><h2>Trials</h2>{_card(('trial', 'state', 'score', 'minutes'), rows)}</section>"


def _card(names: Sequence[str], rows: Sequence[tuple[list[str], Values]]) -> str:
    """A table of those columns, and one for each setting."""
    keys = list(dict.fromkeys(key for _, values in rows for key in values))
    head = "".join(f"<th>{name}</th>" for name in names)
    head += "".join(f"<th>{escape(key).replace('.', '.<br/>')}</th>" for key in keys)
    body = ""
    for (first, *cells), values in rows:
        told = "".join(f"<td>{escape(str(values.get(key, '')))}</td>" for key in keys)
        if not values and keys:
            told = f'<td class="text" colspan="{len(keys)}">as they were</td>'
        body += f"<tr><th>{escape(first)}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}{told}</tr>"
    return f'<div class="card scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _slices(done: Sequence[FrozenTrial], base: float | None) -> str:
    """Score against each setting, whatever the others were; a line where the settings as they were stand."""
    keys = list(dict.fromkeys(key for t in done for key in t.params))
    columns = min(3, len(keys))
    rows = -(-len(keys) // columns)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.9 * columns, 2.6 * rows), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, key in zip(panels, keys, strict=False):
            of = [t for t in done if key in t.params]
            places, ticks = _places([t.params[key] for t in of], of[0].distributions[key])
            axes.scatter(places, [t.value for t in of], s=14, color=ACCENT, alpha=0.75, linewidth=0)
            best = int(np.argmin([float(t.value or 0.0) for t in of]))
            axes.plot(places[best], of[best].value, "o", markersize=8, markerfacecolor="none", markeredgecolor=SECOND)
            if base is not None:
                axes.axhline(base, color=MUTED, linewidth=0.8, linestyle="--")
            axes.set_title(key, loc="left", fontsize=9)
            _mark(axes, ticks)
        for axes in panels[len(keys) :]:
            axes.axis("off")
        return svg(figure, "slices", "score against each setting")


def _parallel(done: Sequence[FrozenTrial]) -> str:
    """A line a trial over all settings and to its score, the lowest at the bottom; the best fifth stands out."""
    keys = list(dict.fromkeys(key for t in done for key in t.params))
    of = [t for t in done if all(key in t.params for key in keys)]
    ranked = sorted(of, key=lambda t: -float(t.value or 0.0))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11.7, 3.6), layout="constrained")
        axes = figure.subplots()
        columns = [_places([t.params[key] for t in ranked], ranked[0].distributions[key]) for key in keys]
        scores = [float(t.value or 0.0) for t in ranked]
        columns.append((scores, [(v, f"{v:.4g}") for v in (min(scores), max(scores))]))
        heights = []
        for k, (places, ticks) in enumerate(columns):
            low, span = ticks[0][0], (ticks[-1][0] - ticks[0][0]) or 1.0
            heights.append((np.array(places) - low) / span)
            for place, label in ticks:
                axes.annotate(
                    label, (k, (place - low) / span), (4, 0), textcoords="offset points", fontsize=7, va="center"
                )
        for k in range(len(ranked)):
            best = k >= len(ranked) - max(1, len(ranked) // 5)
            line: dict[str, Any] = (
                {"color": ACCENT, "alpha": 0.9, "linewidth": 1.4} if best else {"color": MUTED, "alpha": 0.25}
            )
            axes.plot(range(len(heights)), [h[k] for h in heights], **line)
        axes.set_xticks(range(len(heights)), [*(key.replace(".", ".\n") for key in keys), "score"], fontsize=8)
        axes.set_yticks([])
        axes.vlines(range(len(heights)), 0, 1, color=GRID, linewidth=0.8)
        return svg(figure, "parallel", "settings of all trials")


def _importances(study: optuna.Study) -> str:
    """Share of each setting in what tells the best trials from the rest (PED-ANOVA, arXiv 2304.10255)."""
    found = optuna.importance.get_param_importances(study, evaluator=optuna.importance.PedAnovaImportanceEvaluator())
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.8, 0.4 + 0.32 * len(found)), layout="constrained")
        axes = figure.subplots()
        axes.barh(list(found)[::-1], list(found.values())[::-1], color=ACCENT, height=0.6)
        axes.grid(False)
        return svg(figure, "importances", "importance of each setting")


def _places(values: Sequence[Any], distribution: Any) -> tuple[list[float], list[tuple[float, str]]]:
    """(where values stand on an axis, ticks)."""
    if isinstance(distribution, optuna.distributions.CategoricalDistribution):
        choices = list(distribution.choices)
        return [float(choices.index(v)) for v in values], [(float(i), str(c)) for i, c in enumerate(choices)]
    low, high = float(distribution.low), float(distribution.high)
    if distribution.log:
        middle = math.sqrt(low * high)
        return [math.log10(v) for v in values], [(math.log10(v), f"{v:.2g}") for v in (low, middle, high)]
    return [float(v) for v in values], [(v, f"{v:.3g}") for v in (low, (low + high) / 2, high)]


def _mark(axes: Axes, ticks: Sequence[tuple[float, str]]) -> None:
    axes.set_xticks([place for place, _ in ticks], [text for _, text in ticks], fontsize=8)
    low, high = ticks[0][0], ticks[-1][0]
    room = 0.08 * (high - low) or 0.5
    axes.set_xlim(low - room, high + room)  # all that could be drawn, not what was
    axes.margins(y=0.1)
