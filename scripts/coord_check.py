"""Is the parametrisation whole? python scripts/coord_check.py [--quick] [out=DIR] [key=value ...]

Trains small models of several widths and depths for a few steps and fits how activations, logits, and what updates do
to a layer grow with width and depth. Prints the exponents beside the expected ones; exit status 1 where one is off.
With out=DIR writes coord_check.csv (every measurement) and coord_check.png.

--quick                        widths to 256 and depths to 8, all rules but adamw, under half a minute
rules=spectral,unit_scaled,original,match_rms_adamw,adamw   what trains the stack
widths=64,128,256,512,1024 depths=2,4,8,16
steps=4 qk_norm=false          of the model: model.qk_norm of train.py
seed=0 seeds=1                 means over so many seeds, from this one on; --quick: 3
"""

from __future__ import annotations

import csv
import itertools
import logging
import sys
from pathlib import Path

from matplotlib.figure import Figure
from tqdm import tqdm

from toto_train import coordinates
from toto_train.arguments import fail_on, parse
from toto_train.coordinates import EXPECTED, HEAD_WIDTH, RULES, Exponent, Size
from toto_train.files import whole
from toto_train.optim.recipe import LR_RULES

FULL = {"rules": ",".join(RULES), "widths": "64,128,256,512,1024", "depths": "2,4,8,16", "steps": 4, "seeds": 1}
QUICK = {"rules": ",".join(LR_RULES), "widths": "64,128,256", "depths": "2,4,8", "steps": 1, "seeds": 3}
FIXED_WIDTH, FIXED_DEPTH = 64, 4
LEAST_RANGE = 30.0
"""Of a panel, largest over smallest: what is flat looks flat."""


def main(argv: list[str]) -> int:
    options = {**FULL, **(QUICK if "--quick" in argv else {}), "seed": 0, "qk_norm": False, "out": ""}
    args = parse(__doc__, [a for a in argv if a != "--quick"], required={}, optional=options)
    rules = args["rules"].split(",")
    if unknown := [rule for rule in rules if rule not in RULES]:
        raise ValueError(f"rules={unknown[0]!r} must be of {', '.join(RULES)}")
    axes = {"width": (_sizes(args, "widths"), FIXED_DEPTH), "depth": (_sizes(args, "depths"), FIXED_WIDTH)}
    if wrong := [w for w in axes["width"][0] if w % HEAD_WIDTH]:
        raise ValueError(f"widths={wrong[0]} must be a multiple of {HEAD_WIDTH}, the width of a head")
    for key in ("steps", "seeds"):
        if args[key] < 1:
            raise ValueError(f"{key}={args[key]} must be positive")
    logging.getLogger("toto_train").setLevel(logging.WARNING)
    found: list[Size] = []
    jobs = list(itertools.product(axes, rules, range(args["seed"], args["seed"] + args["seeds"])))
    for axis, rule, seed in tqdm(jobs, unit="check", disable=not sys.stderr.isatty()):
        found += coordinates.measure(axis, rule, *axes[axis], args["steps"], seed, args["qk_norm"])
    exponents = coordinates.fit(found)
    print(table(exponents))
    if args["out"]:
        folder = Path(args["out"])
        folder.mkdir(parents=True, exist_ok=True)
        print(write(found, folder / "coord_check.csv"), draw(found, folder / "coord_check.png"), sep="\n")
    off = [e for e in exponents if not e.held]
    print(f"FAIL: {len(off)} of {len(exponents)} exponents are off" if off else f"PASS: {len(exponents)} exponents")
    return 1 if off else 0


def _sizes(args: dict[str, object], key: str) -> list[int]:
    try:
        out = sorted({int(text) for text in str(args[key]).split(",")})
    except ValueError:
        out = []
    if len(out) < 2 or out[0] < 1:
        raise ValueError(f"{key}={args[key]!r} must be two or more positive numbers with commas between")
    return out


def table(exponents: list[Exponent]) -> str:
    lines = ["| over | rule | quantity | step | exponent | expected | |", "|---|---|---|--:|--:|--:|---|"]
    for e in exponents:
        verdict = "holds" if e.held else "OFF"
        lines.append(
            f"| {e.axis} | {e.rule} | {e.quantity} | {e.step} | {e.fitted:+.2f} | {e.expected:+.1f} | {verdict} |"
        )
    return "\n".join(lines)


def write(sizes: list[Size], path: Path) -> Path:
    with whole(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(vars(sizes[0])))
        writer.writeheader()
        writer.writerows(map(vars, sizes))
    return path


def draw(sizes: list[Size], path: Path) -> Path:
    """Sizes over width and depth, a column a quantity, a row a rule; a line a step, dashed what is expected."""
    keys = list(dict.fromkeys((s.axis, s.rule) for s in sizes))
    columns = ("stream", "moved", "logits", "learned")
    last = max(s.step for s in sizes)
    figure = Figure(figsize=(3.1 * len(columns), 2.4 * len(keys)), layout="constrained")
    panels = figure.subplots(len(keys), len(columns), squeeze=False)
    for row, (axis, rule) in zip(panels, keys, strict=True):
        at = sorted({s.at for s in sizes if s.axis == axis})
        for panel, quantity in zip(row, columns, strict=True):
            for step in range(last + 1):
                of = [s for s in sizes if (s.axis, s.rule, s.quantity, s.step) == (axis, rule, quantity, step)]
                means = [sum(rms := [s.rms for s in of if s.at == value]) / len(rms) for value in at]
                if all(means):
                    panel.loglog(at, means, marker="o", markersize=3, linewidth=1, label=f"step {step}",
                                 color=(0.16, 0.44, 0.59, 0.3 + 0.7 * step / last))  # fmt: skip
            expected = EXPECTED[axis][rule].get(quantity)
            if expected is not None:
                means = [panel.lines[0 if quantity == "logits" else -1].get_ydata()[0] * (v / at[0]) ** expected
                         for v in at]  # fmt: skip
                panel.loglog(at, means, "--", color="#e07a1f", linewidth=1.2, label=f"{axis}^{expected:g}")
            low, high = panel.get_ylim()
            middle, half = (low * high) ** 0.5, max(LEAST_RANGE, high / low) ** 0.5
            panel.set_ylim(middle / half, middle * half)
            panel.set_title(f"{rule}: {quantity}", fontsize=8)
            panel.set_xlabel(axis, fontsize=7)
            panel.set_xticks(at, [str(v) for v in at])
            panel.minorticks_off()
            panel.tick_params(labelsize=6)
        row[-1].legend(fontsize=5)
    with whole(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    return path


if __name__ == "__main__":
    with fail_on(ValueError, OSError, name="coord_check"):
        sys.exit(main(sys.argv[1:]))
