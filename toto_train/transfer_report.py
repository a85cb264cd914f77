"""What a study over sizes shows, of learning rates or another swept setting: tables in Markdown and two pictures.

Losses of several seeds are averaged; a run that diverged counts as infinite.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from toto_train.files import whole
from toto_train.swept_setting import STACK_LR, is_log
from toto_train.transfer import LAST, Result

COLORS = ("#2a6f97", "#e07a1f", "#4f9d69", "#9b4f96", "#c1443c", "#6b6b6b")
SHARES = (0.25, 0.5, 0.75, 1.0)
"""Where along the reference's curve the losses are read that the others have to reach."""
MEASURES = {"train": "training loss", "heldout": "loss on held-out windows"}
SHOWN_FROM = 0.15
"""Share of the points from which the pictures of curves begin: before it all fall alike and hide what follows."""


def name_of(rule: str) -> str:
    return {"adamw": "AdamW", "muon": "Muon"}.get(rule, f"NorMuon, {rule}")


def axis_of(results: Iterable[Result]) -> str:
    """What differs between the models: width, or depth where there is one width."""
    return "width" if len({r.trial.width for r in results}) > 1 else "depth"


def noun_of(setting: str, short: bool = False) -> str:
    """What its values are called."""
    if setting != STACK_LR:
        return setting.rpartition(".")[2] if short else setting
    return "lr" if short else "learning rate"


@dataclass(frozen=True)
class Line:
    """Losses of one rule at one size, by value of the swept setting."""

    rule: str
    width: int
    depth: int
    setting: str
    values: list[float]
    losses: list[float]
    """Means over seeds."""
    seeds: list[int]
    spread: float
    """Largest difference between two seeds at one value once each seed's mean is taken off; NaN for one seed."""

    @property
    def best(self) -> int:
        return int(np.argmin(self.losses))

    @property
    def at_edge(self) -> bool:
        return self.best in (0, len(self.values) - 1)

    @property
    def log(self) -> bool:
        """Whether its axis is logarithmic."""
        return is_log(self.setting, self.values)

    @property
    def optimum(self) -> float:
        """Vertex of the parabola through the best value and its neighbours, in log2 of the values where their axis is
        logarithmic; at an edge of the values, that value."""
        k = self.best
        if self.at_edge or not all(map(math.isfinite, self.losses[k - 1 : k + 2])):
            return self.values[k]
        near, y = np.array(self.values[k - 1 : k + 2], dtype=float), np.array(self.losses[k - 1 : k + 2])
        x = np.log2(near) if self.log else near
        a, b, _ = np.polyfit(x - x[1], y, 2)
        if a <= 0:
            return self.values[k]
        vertex = x[1] + np.clip(-b / (2 * a), x[0] - x[1], x[2] - x[1])
        return float(2**vertex) if self.log else float(vertex)


def lines(results: Iterable[Result], measure: str) -> list[Line]:
    """A line for every rule and size, in the order they come."""
    losses: dict[tuple[str, int, int, str], dict[float, dict[int, float]]] = {}
    for r in results:
        t = r.trial
        line = losses.setdefault((t.rule, t.width, t.depth, t.setting), {})
        line.setdefault(t.swept, {})[t.seed] = getattr(r, measure)
    out = []
    for of, by_value in losses.items():
        values = sorted(by_value)
        # a seed that lacks a value would shift that value's mean by what the seed's rows are harder
        seeds = [s for s in next(iter(by_value.values())) if all(s in at for at in by_value.values())]
        if not seeds:
            continue
        table = np.array([[by_value[value][s] for s in seeds] for value in values])
        finite = table[np.isfinite(table).all(axis=1)]
        spread = float(np.ptp(finite - finite.mean(axis=0), axis=1).max()) if len(seeds) > 1 and len(finite) else np.nan
        out.append(Line(*of, values, table.mean(axis=1).tolist(), seeds, spread))
    return out


def transfer_table(results: Sequence[Result], measure: str) -> str:
    """Markdown: losses by size and value, the optimum, and what the smallest size's best value costs at each size."""
    found, axis = lines(results, measure), axis_of(results)
    text = []
    for rule in dict.fromkeys(line.rule for line in found):
        own = sorted((line for line in found if line.rule == rule), key=attrgetter(axis))
        values, setting = sorted({value for line in own for value in line.values}), own[0].setting
        what = "" if setting == STACK_LR else f" by {setting}"
        text += [f"**{rule}**, {MEASURES[measure]}{what}", ""]
        text += [
            f"| {axis} | {' | '.join(f'{v:g}' for v in values)} | optimum | excess at the smallest {axis}'s best |"
        ]
        text += ["|---" * (len(values) + 3) + "|"]
        anchor = own[0].values[own[0].best]
        for line in own:
            at = dict(zip(line.values, line.losses, strict=True))
            best = line.losses[line.best]
            cells = [f"**{at[v]:.4f}**" if at.get(v) == best else f"{at[v]:.4f}" if v in at else "" for v in values]
            sign = ("<= " if line.best == 0 else ">= ") if line.at_edge and len(line.values) > 1 else ""
            excess = f"{(at[anchor] / best - 1) * 100:.2f} %" if anchor in at else ""
            text.append(f"| {getattr(line, axis)} | {' | '.join(cells)} | {sign}{line.optimum:.3g} | {excess} |")
        one = "rate" if setting == STACK_LR else "value"
        spreads = [f"{line.spread:.4f} at {axis} {getattr(line, axis)}" for line in own if math.isfinite(line.spread)]
        text += (
            ["", f"Seeds differ by up to {', '.join(spreads)} in what they say of a {one}.", ""] if spreads else [""]
        )
        if len(own) > 1 and not any(line.at_edge for line in own):
            log = is_log(setting, values)
            optima = np.array([line.optimum for line in own])
            shift = np.polyfit(np.log2([getattr(line, axis) for line in own]), np.log2(optima) if log else optima, 1)[0]
            law = f"as {axis}^{shift:+.2f}" if log else f"by {shift:+.2g} with each doubling of {axis}"
            text += [f"The optimum moves {law}.", ""]
        elif len(own) > 1 and len(values) > 1:
            text += [f"An optimum lies at the edge of the {one}s: give more of them.", ""]
    return "\n".join(text)


def draw_transfer(results: Sequence[Result], measure: str, out: Path) -> Path:
    """A panel a rule, a line a size; the best value of each is marked."""
    found, axis = lines(results, measure), axis_of(results)
    rules = list(dict.fromkeys(line.rule for line in found))
    figure = Figure(figsize=(4.2 * len(rules) + 0.4, 3.6), layout="constrained")
    panels = figure.subplots(1, len(rules), sharey=True, squeeze=False)[0]
    finite = [loss for line in found for loss in line.losses if math.isfinite(loss)]
    for panel, rule in zip(panels, rules, strict=True):
        own = sorted((line for line in found if line.rule == rule), key=attrgetter(axis))
        for line, color in zip(own, COLORS, strict=False):
            panel.plot(
                line.values, line.losses, marker="o", markersize=3, color=color, label=f"{axis} {getattr(line, axis)}"
            )
            panel.plot(line.values[line.best], line.losses[line.best], "o", markersize=9, mfc="none", color=color)
            panel.axvline(line.optimum, color=color, linewidth=0.8, linestyle=":")
        values, setting = sorted({value for line in own for value in line.values}), own[0].setting
        label = "peak learning rate of the stack" if setting == STACK_LR else setting
        panel.set(xscale="log" if is_log(setting, values) else "linear", xlabel=label, title=rule)
        panel.set_xticks(values, [f"{value:g}" for value in values], fontsize=8)
        panel.minorticks_off()
        panel.grid(alpha=0.25)
    if finite:
        low, high = min(finite), float(np.quantile(finite, 0.9))
        panels[0].set_ylim(low - 0.1 * (high - low), high + 0.3 * (high - low))
    panels[0].set_ylabel(MEASURES[measure])
    panels[0].legend(fontsize=8)
    return _save(figure, out)


def _save(figure: Figure, path: Path) -> Path:
    with whole(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    return path


@dataclass(frozen=True)
class Best:
    """Curves of a rule's best value at one size, means over seeds."""

    rule: str
    setting: str
    value: float
    at_edge: bool
    losses: dict[str, float]
    points: dict[str, np.ndarray]
    curves: dict[str, np.ndarray]
    """By measure; training loss is averaged over the LAST share of all steps before a point."""


def best_runs(results: Sequence[Result], measure: str) -> list[Best]:
    """The best of each rule; all results are of one size."""
    out = []
    for line in lines(results, measure):
        value = line.values[line.best]
        own = [r for r in results if (r.trial.rule, r.trial.swept) == (line.rule, value) and r.trial.seed in line.seeds]
        if not math.isfinite(line.losses[line.best]):
            continue
        raw = {name: np.array([[row[name] for row in r.curve] for r in own]).mean(axis=0) for name in own[0].curve[0]}
        window = max(1, math.ceil(LAST * len(raw["train"])))
        smooth = np.convolve(raw["train"], np.ones(window) / window, "valid")
        scored = np.isfinite(raw["heldout"])
        points = {"train": raw["points"][window - 1 :], "heldout": raw["points"][scored]}
        curves = {"train": smooth, "heldout": raw["heldout"][scored]}
        losses = {name: float(np.mean([getattr(r, name) for r in own])) for name in MEASURES}
        at_edge = line.at_edge and len(line.values) > 1
        out.append(Best(line.rule, line.setting, value, at_edge, losses, points, curves))
    return out


def points_to_reach(points: np.ndarray, curve: np.ndarray, loss: float) -> float:
    """Points seen when a curve first is at or below a loss, on the line between two of its points; NaN if never."""
    below = np.flatnonzero(curve <= loss)
    if not len(below):
        return math.nan
    k = int(below[0])
    if k == 0:
        return float(points[0])
    share = (curve[k - 1] - loss) / (curve[k - 1] - curve[k])
    return float(points[k - 1] + share * (points[k] - points[k - 1]))


def comparison_table(results: Sequence[Result], measure: str) -> str:
    """Markdown: each rule's best value and losses, and its points to the losses of the reference over the reference's.

    The reference is adamw, or the first rule where that was not swept. Only the held-out windows, always the same,
    give a curve on which "first reached" means something: rows differ in how hard they are.
    """
    found = best_runs(results, measure)
    if not found:
        return ""
    reference = next((b for b in found if b.rule == "adamw"), found[0])
    size = results[0].trial
    text = [f"Best {noun_of(size.setting)} of each at width {size.width}, depth {size.depth}:", ""]
    text += [
        f"| | {noun_of(size.setting, short=True)} | {' | '.join(MEASURES.values())} |",
        "|---" * (2 + len(MEASURES)) + "|",
    ]
    for b in found:
        edge = f" (edge of the {'rate' if b.setting == STACK_LR else 'value'}s)" if b.at_edge else ""
        text.append(f"| {name_of(b.rule)} | {b.value:g}{edge} | {' | '.join(f'{b.losses[m]:.4f}' for m in MEASURES)} |")
    x, y = reference.points["heldout"], reference.curves["heldout"]
    levels = [float(y[max(0, math.ceil(share * len(y)) - 1)]) for share in SHARES]
    needed = [points_to_reach(x, y, level) for level in levels]
    text += ["", f"Points to reach a {MEASURES['heldout']}, over those of {name_of(reference.rule)}:", ""]
    text += [f"| | {' | '.join(f'{level:.4f}' for level in levels)} |", "|---" * (len(levels) + 1) + "|"]
    text += [f"| {name_of(reference.rule)}, points | {' | '.join(f'{n / 1e6:.2f} M' for n in needed)} |"]
    for b in found:
        if b is not reference:
            own = [points_to_reach(b.points["heldout"], b.curves["heldout"], level) for level in levels]
            ratios = [o / n for o, n in zip(own, needed, strict=True)]
            text.append(
                f"| {name_of(b.rule)} | {' | '.join('never' if math.isnan(r) else f'{r:.2f}' for r in ratios)} |"
            )
    return "\n".join([*text, ""])


def draw_comparison(results: Sequence[Result], measure: str, out: Path) -> Path:
    """Curves of each rule's best value: training loss on the left, held-out windows on the right."""
    found = best_runs(results, measure)
    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    panels = figure.subplots(1, len(MEASURES))
    for panel, (name, title) in zip(panels, MEASURES.items(), strict=True):
        for b, color in zip(found, COLORS, strict=False):
            x, y = b.points[name], b.curves[name]
            shown = x >= SHOWN_FROM * x[-1]
            label = f"{name_of(b.rule)}, {noun_of(b.setting, short=True)} {b.value:g}"
            panel.plot(x[shown] / 1e6, y[shown], color=color, linewidth=1.4, label=label)
        panel.set(xlabel="million observed points", title=title)
        panel.tick_params(labelsize=8)
        panel.grid(alpha=0.25)
    panels[0].legend(fontsize=8)
    return _save(figure, out)
