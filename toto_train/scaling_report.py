"""What a ladder of sizes shows: a table in Markdown and one page with plots."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from toto_train.evaluation.page import COLOURS, cell, heads, plural, write_page
from toto_train.evaluation.plots import INK, MUTED, SERIES, STYLE, Ending, label_right, short_number, svg
from toto_train.scaling_law import (
    Band,
    Check,
    Effect,
    Fit,
    Observation,
    leave_out_largest,
    means,
    orderings,
    size_effect,
)
from toto_train.scaling_law import fit as fit_law

EXPONENTS = {"floor": "E", "size_exponent": "a", "data_exponent": "b"}


@dataclass(frozen=True)
class Findings:
    """All that a ladder says."""

    observations: list[Observation]
    fit: Fit
    effect: Effect
    checks: list[Check]
    """Of the largest size, by the law of the others."""
    ahead: list[tuple[int, float, Band]]
    """Parameters, points and predicted loss of a size that was not trained."""
    repeats: float
    """How often the longest run has seen the average of its rows."""

    @property
    def verdicts(self) -> list[tuple[bool, str]]:
        """(whether it is as it should be, a sentence)."""
        better, pairs = orderings(self.observations)
        size = (
            f"Each doubling of the parameters changes the loss by {self.effect.per_doubling:+.2%} at equal points; "
            f"shuffled sizes do as much with probability {self.effect.chance:.4f}"
        )
        order = f"The next larger size is better in {better} of {pairs} neighbours at equal points"
        found = [(self.effect.found, size), (better == pairs, order)]
        if self.checks:
            held = sum(c.predicted.holds(c.observed) for c in self.checks)
            error, none = (np.mean([abs(math.log(v / c.observed)) for c, v in self._against(kind)]) for kind in (0, 1))
            found.append((
                held == len(self.checks) and bool(error < none),
                f"The largest size, left out of the fit, lies within its 95% band at {held} of {len(self.checks)} "
                f"horizons; the prediction is off by {error:.2%} on average, the next smaller size's loss by "
                f"{none:.2%}",
            ))  # fmt: skip
        return found

    def _against(self, kind: int) -> list[tuple[Check, float]]:
        return [(c, c.no_gain if kind else c.predicted.value) for c in self.checks]


def analyse(observations: Sequence[Observation], ahead: int, repeats: float, draws: int) -> Findings:
    """Fit, test, predict; ahead: parameters of a size to predict. Raises ValueError where runs are too few."""
    fitted = fit_law(observations, draws)
    points = {o.steps: o.points for o in observations}
    after = [(ahead, float(points[s]), fitted.predict(ahead, points[s], 1)) for s in sorted(points)]
    checks = leave_out_largest(observations, draws)
    return Findings(list(observations), fitted, size_effect(observations), checks, after, repeats)


def text(f: Findings) -> str:
    """Markdown: mean losses by size and horizon, the law, the checks, the verdicts."""
    steps = sorted({o.steps for o in f.observations})
    lines = [f"| size | parameters | {' | '.join(f'{s:,} steps' for s in steps)} |", "|---" * (2 + len(steps)) + "|"]
    names = {o.parameters: o.size for o in f.observations}
    at = {s: means([o for o in f.observations if o.steps == s]) for s in steps}
    for n, name in sorted(names.items()):
        cells = [f"{at[s][n]:.4f}" if n in at[s] else "" for s in steps]
        lines.append(f"| {name} | {n:,} | {' | '.join(cells)} |")
    lines += ["", f"L = E + A/N^a + B/D^b, {len(f.observations)} runs, a run scatters by {f.fit.spread:.2%}:", ""]
    lines += ["| | value | 95% band |", "|---|---|---|"]
    lines += [f"| {sign} | {_number(f.fit.band(name))} |".replace(" [", " | [") for name, sign in EXPONENTS.items()]
    if f.checks:
        lines += ["", f"{names[f.checks[0].parameters]}, predicted by the others:", ""]
        lines += ["| steps | predicted | observed | |", "|---|---|---|---|"]
        for c in f.checks:
            word = "within" if c.predicted.holds(c.observed) else "OUTSIDE"
            lines.append(f"| {c.steps:,} | {_number(c.predicted)} | {c.observed:.4f} | {word} |")
    lines += ["", *(f"{'yes' if good else 'NO'}: {said}." for good, said in f.verdicts)]
    return "\n".join(lines)


def _number(band: Band) -> str:
    return f"{band.value:.4f} [{band.low:.4f}, {band.high:.4f}]"


def write_report(f: Findings, path: Path, settings: Sequence[str]) -> Path:
    """The page; settings: what was given beside sizes and horizons."""
    counts = {"run": len(f.observations), "size": len(means(f.observations))}
    counts |= {"horizon": len({o.steps for o in f.observations}), "seed": len({o.seed for o in f.observations})}
    facts = (
        f"{', '.join(plural(count, noun) for noun, count in counts.items())}. The longest run saw the average of its "
        f"rows {f.repeats:.1f} times. " + (f"Settings: {' '.join(settings)}." if settings else "")
    )
    plots = (
        f'<figure class="card"><figcaption>Loss over points<i>a line a size: the law of all runs</i></figcaption>'
        f'{points_plot(f)}</figure><figure class="card"><figcaption>Loss over parameters<i>a line a horizon: the law, '
        f"with the band of its 95%</i></figcaption>{size_plot(f)}</figure>"
    )
    return write_page(path, "Scaling law", [
        f'<section><p class="lead">{escape(facts)}</p>{_tiles(f)}</section>',
        f"<section><h2>Verdicts</h2>{_verdicts(f)}</section>",
        f'<section><h2>The law</h2><div class="pair">{plots}</div></section>',
        f"<section><h2>Predictions</h2>{_predictions(f)}</section>",
        f"<section><h2>Runs</h2>{_runs(f)}</section>",
    ])  # fmt: skip


def _tiles(f: Findings) -> str:
    what = {"E": "the loss that is left", "a": "exponent of parameters", "b": "exponent of points"}
    cards = []
    for name, sign in EXPONENTS.items():
        band = f.fit.band(name)
        cards.append(
            f'<div class="card"><h3>{sign}, {what[sign]}</h3><p class="big">{band.value:.3f}</p>'
            f'<p class="note">95%: {band.low:.3f} – {band.high:.3f}</p></div>'
        )
    cards.append(
        f'<div class="card"><h3>Twice the parameters</h3><p class="big">{f.effect.per_doubling:+.1%}</p>'
        f'<p class="note">of the loss, at equal points<br>by chance: {f.effect.chance:.4f}</p></div>'
    )
    return f'<div class="tiles">{"".join(cards)}</div>'


def _verdicts(f: Findings) -> str:
    body = "".join(
        f'<tr><td class="verdict {"good" if good else "bad"}">{"yes" if good else "no"}</td>'
        f'<td class="text" style="white-space:normal">{escape(said)}.</td></tr>'
        for good, said in f.verdicts
    )
    return f'<div class="card scroll"><table>{body}</table></div>'


def points_plot(f: Findings) -> str:
    """Runs as dots and the law as a line for each size, over points."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.7, 3.6), layout="constrained")
        axes, endings = figure.subplots(), []
        seen = [o.points for o in f.observations]
        x = np.geomspace(min(seen), max(seen), 60)
        for k, n in enumerate(means(f.observations)):
            own, colour = [o for o in f.observations if o.parameters == n], SERIES[k % COLOURS]
            y = [f.fit.law(n, d) for d in x]
            axes.plot(x, y, color=colour, linewidth=1.5)
            axes.plot([o.points for o in own], [o.loss for o in own], "o", color=colour, markersize=3.5)
            endings.append(Ending(own[0].size, x[-1], y[-1], colour))
        _log(axes, sorted(set(seen)), "points seen")
        label_right(axes, endings)
        return svg(figure, "points", "held-out loss over points, by size")


def size_plot(f: Findings) -> str:
    """Runs as dots, the law with its band as a line for each horizon, and what was predicted without the largest."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.7, 3.6), layout="constrained")
        axes, endings = figure.subplots(), []
        sizes = list(means(f.observations))
        x = np.geomspace(sizes[0], f.ahead[0][0], 40)
        for k, (steps, (_, points, _)) in enumerate(
            zip(sorted({o.steps for o in f.observations}), f.ahead, strict=True)
        ):
            own, colour = [o for o in f.observations if o.steps == steps], SERIES[k % COLOURS]
            bands = [f.fit.predict(n, points) for n in x]
            axes.fill_between(x, [b.low for b in bands], [b.high for b in bands], color=colour, alpha=0.14, linewidth=0)
            axes.plot(x, [b.value for b in bands], color=colour, linewidth=1.5)
            axes.plot([o.parameters for o in own], [o.loss for o in own], "o", color=colour, markersize=3.5)
            endings.append(Ending(f"{steps:,} steps", x[-1], bands[-1].value, colour))
        for c in f.checks:
            axes.plot([c.parameters] * 2, [c.predicted.low, c.predicted.high], color=MUTED, linewidth=1)
            axes.plot(c.parameters, c.predicted.value, "_", color=INK, markersize=9)
        _log(axes, [*sizes, f.ahead[0][0]], "parameters")
        label_right(axes, endings)
        return svg(figure, "sizes", "held-out loss over parameters, by horizon")


def _log(axes: Axes, ticks: Sequence[float], label: str) -> None:
    axes.set(xscale="log", xlabel=label, ylabel="held-out loss")
    axes.set_xticks(list(ticks))
    axes.minorticks_off()
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: short_number(v)))
    axes.yaxis.set_major_locator(MaxNLocator(5))


def _predictions(f: Findings) -> str:
    """The largest size as the others predict it, and the next as all predict it."""
    body = []
    for c in f.checks:
        inside = c.predicted.holds(c.observed)
        body.append(_prediction(c.parameters, c.points, c.predicted, c.observed, "within" if inside else "outside"))
    body += [_prediction(n, points, band, math.nan, "") for n, points, band in f.ahead]
    names = ["parameters", "points", "predicted", "95% band", "observed", "error", ""]
    return (
        '<p class="lead">The largest size as the law of all smaller ones has it, then a size that was not trained by '
        "the law of all. Bands are those of a run: they hold the law's own doubt and the scatter of runs around it.</p>"
        f'<div class="card scroll"><table class="sortable"><thead>{heads(names, 0)}</thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _prediction(parameters: int, points: float, band: Band, observed: float, word: str) -> str:
    error = math.log(band.value / observed) if math.isfinite(observed) else math.nan
    seen = (f"{observed:.4f}", f"{error:+.2%}") if math.isfinite(error) else ("–", "–")
    kind = {"within": "good", "outside": "bad"}.get(word, "even")
    return (
        f"<tr>{cell(parameters, f'{parameters:,}')}{cell(points, short_number(points))}"
        f"{cell(band.value, f'{band.value:.4f}')}<td>{band.low:.4f} – {band.high:.4f}</td>{cell(observed, seen[0])}"
        f'{cell(error, seen[1])}<td class="verdict {kind}">{word}</td></tr>'
    )


def _runs(f: Findings) -> str:
    body = []
    for o in sorted(f.observations, key=lambda o: (o.parameters, o.steps, o.seed)):
        law = f.fit.law(o.parameters, o.points)
        values = (o.parameters, f"{o.parameters:,}"), (o.steps, f"{o.steps:,}"), (o.points, short_number(o.points)), (
            o.seed, str(o.seed)), (o.loss, f"{o.loss:.4f}"), (law, f"{law:.4f}"), (
            math.log(o.loss / law), f"{math.log(o.loss / law):+.2%}")  # fmt: skip
        body.append(f"<tr><th>{escape(o.size)}</th>{''.join(cell(v, shown) for v, shown in values)}</tr>")
    names = ["size", "parameters", "steps", "points", "seed", "loss", "law", "off by"]
    return (
        f'<div class="card scroll tall"><table class="sortable"><thead>{heads(names)}</thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )
