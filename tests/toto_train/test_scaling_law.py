"""The fit finds laws that are known, says how well it knows them, and finds no size effect where there is none."""

import math
from dataclasses import replace

import numpy as np
import pytest

from toto_train.scaling_law import Law, Observation, fit, leave_out_largest, orderings, size_effect
from toto_train.scaling_report import analyse, text, write_report

LAW = Law(0.2, 8.0, 0.4, 60.0, 0.45)
"""Loss 0.32 to 0.26 over the sizes, 0.27 to 0.25 over the horizons: of the kind that small models show."""
FLAT = replace(LAW, size_factor=0.0)
NOISE = 0.002
SIZES = (100_000, 350_000, 800_000, 1_300_000, 4_000_000)


def made(law: Law, seed: int, noise: float = NOISE, sizes=SIZES, seeds: int = 1) -> list[Observation]:
    rng = np.random.default_rng(seed)
    return [
        Observation(f"{n}", n, steps, steps * 100_000, k, law(n, steps * 1e5) * math.exp(noise * rng.standard_normal()))
        for n in sizes
        for steps in (100, 200, 400, 800)
        for k in range(seeds)
    ]


def test_a_law_without_noise_is_found():
    found = fit(made(LAW, 0, noise=0), draws=1).law
    assert vars(found) == pytest.approx(vars(LAW), rel=1e-3)


def test_exponents_lie_in_their_bands():
    # 6 fits of 2 exponents: bands of 95 % hold 10 or more of 12 with probability 0.98, bands of 50 % with 0.02
    held, wide = 0, []
    for seed in range(6):
        found = fit(made(LAW, seed), draws=20, seed=seed)
        for name in ("size_exponent", "data_exponent"):
            band = found.band(name)
            held += band.holds(getattr(LAW, name))
            wide.append(band.high - band.low)
    assert held >= 10, held
    assert max(wide) < 0.4  # and they say something


def test_one_broken_run_does_not_move_the_law():
    runs = made(LAW, 3)
    runs[7] = replace(runs[7], loss=1.2 * runs[7].loss)
    assert fit(runs, draws=5).law.size_exponent == pytest.approx(LAW.size_exponent, abs=0.08)


def test_a_law_without_size_effect_is_said_to_have_none():
    # of 40 flat ladders 2 are expected to pass at 5 %; 7 or more would have probability 3e-3
    assert sum(size_effect(made(FLAT, seed)).found for seed in range(40)) <= 6
    assert all(size_effect(made(LAW, seed)).found for seed in range(40))
    upside_down = [replace(o, loss=1 / o.loss) for o in made(LAW, 0)]
    assert not size_effect(upside_down).found
    band = fit(made(FLAT, 0), draws=15).band("size_exponent")
    assert band.high - band.low > 1  # the exponent of nothing


def test_the_size_effect_is_the_slope_at_equal_points():
    power = Law(0.0, 5.0, 0.1, 0.0, 0.0)  # 2^-0.1 a doubling
    effect = size_effect(made(power, 0, noise=0))
    assert effect.per_doubling == pytest.approx(2**-0.1 - 1)
    assert effect.chance < 0.001


def test_the_largest_size_is_predicted_from_the_others():
    checks = [c for seed in range(3) for c in leave_out_largest(made(LAW, seed, seeds=2), draws=20, seed=seed)]
    assert {c.parameters for c in checks} == {SIZES[-1]}
    assert len(checks) == 12
    assert np.mean([abs(math.log(c.predicted.value / c.observed)) for c in checks]) < 0.008
    assert np.mean([abs(math.log(c.no_gain / c.observed)) for c in checks]) > 0.03  # what size is worth
    assert sum(c.predicted.holds(c.observed) for c in checks) >= 8
    # a size that broke the law is noticed
    broken = [replace(o, loss=o.loss * (1.05 if o.parameters == SIZES[-1] else 1)) for o in made(LAW, 0)]
    assert not any(c.predicted.holds(c.observed) for c in leave_out_largest(broken, draws=10))
    assert leave_out_largest(made(LAW, 0, sizes=SIZES[:3])) == []


def test_neighbours_in_order():
    assert orderings(made(LAW, 0, noise=0)) == (16, 16)
    swapped = [replace(o, loss=9.0) if o.parameters == SIZES[1] and o.steps == 100 else o for o in made(LAW, 0, 0)]
    assert orderings(swapped) == (15, 16)


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        (made(LAW, 0, sizes=SIZES[:2]), "3 sizes or more, not 2"),
        ([o for o in made(LAW, 0) if o.steps < 400], "3 horizons or more, not 2"),
        ([replace(made(LAW, 0)[0], loss=math.nan), *made(LAW, 0)[1:]], "after 100 steps is nan"),
    ],
)
def test_what_no_law_can_be_fitted_to(runs, message):
    with pytest.raises(ValueError, match=message):
        fit(runs)


def test_the_page_and_the_text(tmp_path):
    good = analyse(made(LAW, 0), 16_000_000, 1.5, draws=10)
    shown = text(good)
    assert "| 4000000 | 4,000,000 |" in shown
    assert shown.count("yes: ") >= 2
    page = write_report(good, tmp_path / "report.html", ["data=<mine>"]).read_text()
    assert page.count("<svg") == 2
    assert "16,000,000" in page
    assert "data=&lt;mine&gt;" in page
    bad = analyse(made(FLAT, 1), 16_000_000, 1.5, draws=3)
    assert not bad.effect.found
    assert "NO: Each doubling" in text(bad)
    assert 'class="verdict bad"' in write_report(bad, tmp_path / "report.html", []).read_text()
