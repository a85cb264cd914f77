"""Gaussian processes (kernel, gp): covariances against scikit-learn, drawn parameters against their tables.

Seeds are fixed. The hypotheses of a test share a significance of 1e-3 by Holm's rule. Power is stated as the deviation
that is found 4 times in 5.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import numpy as np
import pytest
from scipy import stats

from data_pipelines.synthetic import gaussian, gp, kernel, matern
from data_pipelines.synthetic.chunk import keyed_generator

SIGNIFICANCE = 1e-3
LN_2 = np.log(2)


def assert_holm(p_values: dict[str, float]) -> None:
    """All hypotheses hold at a family-wise significance of 1e-3."""
    ordered = sorted(p_values.items(), key=lambda item: item[1])
    refuted = [(name, p) for i, (name, p) in enumerate(ordered) if p < SIGNIFICANCE / (len(ordered) - i)]
    assert not refuted


def even(counts: Sequence[int]) -> float:
    return float(stats.chisquare(counts).pvalue)


# --- covariances


def test_rounding_does_not_say_which_lines_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU whose exponential ends in another digit has other weights, and the same lines in the same order."""
    cases = [kernel.draw_monomials(np.random.default_rng(seed), 7) for seed in range(60)]

    def frequencies() -> list[list[float]]:
        return [lines.frequencies.tolist() for case in cases for _, lines in kernel.decompose(case, 512)[0]]

    here, exact, rng = frequencies(), kernel._bank_lines, np.random.default_rng(0)

    def rounded(entry: int) -> gaussian.Lines:
        weights = exact(entry).weights
        return gaussian.Lines(exact(entry).frequencies, weights * (1 + rng.uniform(-1e-15, 1e-15, len(weights))))

    monkeypatch.setattr(kernel, "_bank_lines", rounded)
    assert frequencies() == here


def sklearn_bank(length: int) -> list[Any]:
    """The 33 kernels of KernelSynth in our numbering, periods scaled to the length."""
    k = pytest.importorskip("sklearn.gaussian_process.kernels", reason="scikit-learn is installed by make test")
    periods = [24, 48, 96, 24 * 7, 48 * 7, 96 * 7, 7, 14, 30, 60, 365, 730, 4, 26, 52, 4, 6, 12, 4, 40, 10]
    return [
        *(k.ExpSineSquared(periodicity=p / length) for p in periods),
        *(k.DotProduct(sigma_0=s) for s in (0.0, 1.0, 10.0)),
        *(k.RBF(length_scale=s) for s in (0.1, 1.0, 10.0)),
        *(k.RationalQuadratic(alpha=a) for a in (0.1, 1.0, 10.0)),
        k.ConstantKernel(),
        *(k.WhiteKernel(noise_level=v) for v in (0.1, 1.0)),
    ]


def sklearn_gp(kernels: gp.Kernel, length: int) -> Any:
    """gpytorch's kernel in scikit-learn's words: its periodic kernel divides by the length scale, not its square."""
    k = pytest.importorskip("sklearn.gaussian_process.kernels", reason="scikit-learn is installed by make test")
    made = {
        "periodic": lambda: k.ExpSineSquared(np.sqrt(kernels.scale), kernels.period / length),
        "matern": lambda: k.Matern(kernels.scale, nu=kernels.order),
        "linear": lambda: LN_2 * k.DotProduct(sigma_0=0.0),
    }[kernels.kind]()
    return LN_2 * made if kernels.scaled else made


def folded(rng: np.random.Generator, factors: Sequence[Any]) -> Any:
    """The left fold that `gaussian.fold` expands, from the same draws."""
    return reduce(lambda a, b: a * b if rng.random() < 0.5 else a + b, factors)


def kernel_case(seed: int, length: int) -> tuple[list[kernel.Monomial], np.ndarray]:
    """Monomials of a fold of up to 7 kernels and scikit-learn's covariance of the same fold."""
    monomials = kernel.draw_monomials(np.random.default_rng(seed), 7)
    rng, bank = np.random.default_rng(seed), sklearn_bank(length)
    entries = rng.integers(0, 33, rng.integers(1, 8))
    return monomials, folded(rng, [bank[i] for i in entries])(np.linspace(0, 1, length)[:, None])


def gp_case(seed: int, length: int) -> tuple[list[tuple[gp.Kernel, ...]], np.ndarray]:
    rng = np.random.default_rng(seed)
    kernels = gp.draw_kernels(rng, length)
    state = rng.bit_generator.state
    monomials = gaussian.fold(rng, kernels)
    rng.bit_generator.state = state
    return monomials, folded(rng, [sklearn_gp(k, length) for k in kernels])(np.linspace(0, 1, length)[:, None])


def stationary(lines: gaussian.Lines, length: int) -> np.ndarray:
    """[T, T] covariance of lines, in blocks: a product of six kernels has a hundred thousand."""
    distance = np.arange(length) * (length / (length - 1))
    blocks = [gaussian.Lines(*(part[i : i + 4096] for part in lines)) for i in range(0, len(lines.weights), 4096)]
    return toeplitz(np.sum([gaussian.lines_covariance(b, distance) for b in blocks], axis=0))


def toeplitz(first: np.ndarray) -> np.ndarray:
    t = np.arange(len(first))
    return first[np.abs(t[:, None] - t)]


def implied_kernel(monomials: list[kernel.Monomial], length: int) -> np.ndarray:
    spectra, variance = kernel.decompose(monomials, length)
    total = np.diag(variance)
    for members, lines in spectra:
        columns = kernel.smooth_columns(members, length).astype(np.float64)
        total = total + columns.T @ columns * stationary(lines, length)
    return total


def implied_gp(monomials: list[tuple[gp.Kernel, ...]], length: int) -> np.ndarray:
    x = np.linspace(0, 1, length)
    parts = gp.decompose(monomials, length).items()
    return np.sum([np.outer(x, x) ** a * (stationary(s, length) + toeplitz(end)) for a, (s, end) in parts], axis=0)


@pytest.mark.parametrize(("case", "implied"), [(kernel_case, implied_kernel), (gp_case, implied_gp)])
def test_implied_covariance_is_scikit_learns(
    case: Callable[[int, int], tuple[Any, np.ndarray]], implied: Callable[[Any, int], np.ndarray]
) -> None:
    """Spectral lines, columns, diagonal and the part that ends with the window: 1e-6 of the greatest entry."""
    for seed in range(100):
        length = (64, 101)[seed % 2]
        monomials, expected = case(seed, length)
        assert np.abs(implied(monomials, length) - expected).max() < 1e-6 * np.abs(expected).max(), monomials


class OneNormal:
    """A generator whose normal draws are all zero but one."""

    def __init__(self, one: int) -> None:
        self.one, self.drawn = one, 0

    def standard_normal(self, size: Any, dtype: Any = np.float64) -> np.ndarray:
        draws = np.zeros(size, dtype)
        if 0 <= self.one - self.drawn < draws.size:
            draws.flat[self.one - self.drawn] = 1
        self.drawn += draws.size
        return draws


@pytest.mark.parametrize(("case", "sample"), [(kernel_case, kernel.sample), (gp_case, gp.sample)], ids=["kernel", "gp"])
def test_paths_have_scikit_learns_covariance(
    case: Callable[[int, int], tuple[Any, np.ndarray]], sample: Callable[..., np.ndarray]
) -> None:
    """A path is linear in its normal draws, so feeding them in one by one gives its exact covariance."""
    length, tested = 32, 0
    for seed in range(25):
        monomials, expected = case(seed, length)
        counter: Any = OneNormal(-1)
        sample(counter, monomials, length)
        if counter.drawn > 200:
            continue
        columns = [sample(OneNormal(i), monomials, length).astype(np.float64) for i in range(counter.drawn)]
        covariance = np.einsum("it,is->ts", columns, columns)
        assert np.abs(covariance - expected).max() < 1e-6 * np.abs(expected).max(), monomials
        tested += 1
    assert tested > 8


ROUGH = gp.Kernel("matern", False, 0.03, order=0.5)


@pytest.mark.parametrize("others", [(), (ROUGH,), (ROUGH, gp.Kernel("periodic", False, 1.0, 20))])
def test_matern_kernels_that_are_over_at_once_have_no_lines_and_still_their_covariance(others) -> None:
    """Their lines hold less than what is dropped; products of nothing are nothing (it ended a run once)."""
    length = 128
    monomial = (ROUGH, ROUGH, *others)
    distance = np.arange(length) * (length / (length - 1))
    expected = np.exp(-(2 + others.count(ROUGH)) * distance / length / ROUGH.scale)
    if len(others) == 2:
        expected *= np.exp(-2 * np.sin(np.pi / 20 * distance) ** 2)
    ((lines, ending),) = gp.decompose([monomial], length).values()
    np.testing.assert_allclose(gaussian.lines_covariance(lines, distance) + ending, expected, atol=1e-6)
    assert np.isfinite(gp.sample(np.random.default_rng(0), [monomial], length)).all()


@pytest.mark.parametrize("order", matern.ORDERS)
def test_matern_rest_is_a_covariance_that_ends_with_the_window(order: float) -> None:
    """At any scale the cosines have positive weights, and the rest no negative eigenvalue on circles that hold it."""
    length = 512
    distance = np.arange(length) * (length / (length - 1))
    for scale in np.geomspace(0.03, 30, 60):
        lines = matern.window_lines(order, scale, length)
        assert (lines.weights > 0).all()
        rest = matern.covariance(distance / length, order, scale) - gaussian.lines_covariance(lines, distance)
        assert abs(rest[-1]) < 1e-14
        for circle in (2 * length - 2, 2 * length + 37, 5 * length):
            padded = np.zeros(circle)
            padded[:length] = rest
            padded[1 - length :] = rest[:0:-1]
            spectrum = np.fft.rfft(padded).real
            assert -spectrum[spectrum < 0].sum() * 2 / circle < 1e-13  # variance that clipping at zero would add


# --- drawn parameters


def test_kernel_folds_follow_their_law() -> None:
    """J, entries, operators. Power: one J at .233 instead of .2, an entry at .041 instead of .030, x at .525."""
    for most in (5, 7):
        rng = np.random.default_rng(most)
        folds = [kernel.draw_monomials(rng, most) for _ in range(4000)]
        # Every x lengthens the first monomial, every + adds one that begins with its entry.
        j = [len(f) + len(f[0]) - 1 for f in folds]
        entries = Counter(e for f in folds for e in (*f[0], *(m[0] for m in f[1:])))
        assert_holm(
            {
                "J": even([j.count(n) for n in range(1, most + 1)]),
                "entries": even([entries[e] for e in range(33)]),
                "x": stats.binomtest(sum(len(f[0]) - 1 for f in folds), sum(j) - len(j), 0.5).pvalue,
            }
        )
        assert set(j) == set(range(1, most + 1))


def test_gp_kernels_follow_their_law() -> None:
    """TempoPFN's tables at 2048. Power: J off by .04, scaled by .023, orders by .05, a KS D of .03 and .06."""
    rng = np.random.default_rng(2)
    drawn = [gp.draw_kernels(rng, 2048) for _ in range(3000)]
    every = [k for kernels in drawn for k in kernels]
    kinds, periodic, materns = (
        Counter(k.kind for k in every),
        *([k for k in every if k.kind == kind] for kind in ("periodic", "matern")),
    )
    means = np.array([3, 5, 7, 14, 20, 21, 24, 30, 60, 90, 120, 512, 612, 712, 812, 912, 1012])
    assert gp.period_means(2048).tolist() == means.tolist()
    edges = np.array([1, 3, 5, 8, 12, 16, 20, 24, 28, 34, 50, 70, 100, 130, 300, 550, 650, 750, 850, 950, 1050])
    # int() of a normal draw; the few under 1 (nearly all of them above -2) become 1 or 2.
    below = stats.norm.cdf(edges[:, None], means, means**0.6).mean(axis=1)
    expected = np.diff(np.concatenate([[0], below[1:], [1]])) * len(periodic)
    counts = np.histogram([k.period for k in periodic], np.append(edges, np.inf))[0]
    assert_holm(
        {
            "J": even([sum(len(kernels) == n for kernels in drawn) for n in range(1, 7)]),
            "kinds": stats.chisquare(
                [kinds[k] for k in ("periodic", "matern", "linear")], np.array([5, 1.5, 1]) / 7.5 * len(every)
            ).pvalue,
            "scaled": stats.binomtest(sum(k.scaled for k in every), len(every), 0.5).pvalue,
            "orders": even([sum(k.order == o for k in materns) for o in (0.5, 1.5, 2.5)]),
            "periodic scale": stats.kstest([k.scale for k in periodic], "uniform", (0.1, 4.9)).pvalue,
            "matern scale": stats.kstest([k.scale for k in materns], "uniform", (0.1, 4.9)).pvalue,
            "periods": stats.chisquare(counts, expected).pvalue,
        }
    )
    assert all(k.period >= 1 for k in periodic)


def test_gp_long_periods_reach_half_of_the_window() -> None:
    short = [3, 5, 7, 14, 20, 21, 24, 30, 60, 90, 120]
    assert gp.period_means(4096).tolist() == [*short, *range(1024, 2048, 100)]
    assert gp.period_means(512).tolist() == [*short, 128, 228]
    assert gp.period_means(420).tolist() == short
    assert gp.period_means(300).tolist() == [*short, 150]
    assert gp.period_means(32).tolist() == [3, 5, 7, 14]


def test_gp_mean_is_linear_in_half_and_spikes_in_a_tenth(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the process itself at zero. Power: a share of .5 off by .05 and of .1 by .03, a KS D of .08."""
    monkeypatch.setattr(gp, "sample", lambda rng, monomials, length: np.zeros(length, np.float32))
    spiked: list[int] = []
    monkeypatch.setattr(gp, "_add_peak_spikes", lambda rng, row, period, early: spiked.append(period))
    values = gp.generate(np.random.default_rng(3), 256, 2048)
    trend = values[values.any(axis=1)]
    without_period = np.mean([(2.5 / 7.5) ** j for j in range(1, 7)])
    assert_holm(
        {
            "trend": stats.binomtest(len(trend), len(values), 0.5).pvalue,
            "level": stats.kstest(trend[:, 0], "norm").pvalue,
            "slope": stats.kstest(trend[:, -1] - trend[:, 0], "norm").pvalue,
            "spikes": stats.binomtest(len(spiked), len(values), 0.1 * (1 - without_period)).pvalue,
        }
    )
    assert min(spiked) >= 1


def test_gp_peak_spikes_follow_their_law() -> None:
    """On a wave of period 50 that peaks at 20, 2,000 times. Power: shares off by .05."""
    length, period = 1000, 50
    wave = (2 + np.cos(2 * np.pi * (np.arange(length) - 20) / period)).astype(np.float32)
    rng = np.random.default_rng(4)
    rows = np.tile(wave, (2000, 1))
    for row in rows:
        gp._add_peak_spikes(rng, row, period)
    added = np.where((rows >= wave).all(axis=1)[:, None], rows / wave - 1, rows - wave)
    at = np.abs(added) > 1e-3
    peaks = at[:, 20::period]
    widths = at.sum(axis=1) / peaks.sum(axis=1)
    heights = np.abs(added[:, 20::period]).max(axis=1) / ((widths + 1) / 2)
    assert set(widths) == {1, 3, 5}
    assert_holm(
        {
            "upward": stats.binomtest(int((added.max(axis=1) > 0).sum()), 2000, 0.7).pvalue,
            "regular": stats.binomtest(int(peaks.all(axis=1).sum()), 2000, 0.3).pvalue,
            "build-up": stats.chisquare([(widths == w).sum() for w in (1, 3, 5)], [800, 900, 300]).pvalue,
            "high": stats.binomtest(int((heights > 2.25).sum()), 2000, 0.3).pvalue,
        }
    )
    assert heights.max() < 5.001


def test_gp_noise_is_what_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gp, "sample", lambda rng, monomials, length: np.zeros(length, np.float32))
    monkeypatch.setattr(gp, "PEAK_SPIKES", 0.0)
    values = gp.generate(np.random.default_rng(5), 1024, 64, noise=0.3)
    second = np.diff(values.astype(np.float64), 2, axis=1)[:, ::3]  # a line has none; steps 3 apart are independent
    p = stats.chi2.cdf((second**2).sum() / (6 * 0.3**2), second.size)
    assert SIGNIFICANCE / 2 < p < 1 - SIGNIFICANCE / 2


# --- samples


@pytest.mark.slow
def test_kernel_series_are_those_of_scikit_learn() -> None:
    """Two-sample KS of twelve statistics, 1,000 series each at 128 steps. Power: D of .12.

    Two samples of the reference pass by the same rule; folds of at most 3 kernels instead of 5 do not.
    """
    process = pytest.importorskip("sklearn.gaussian_process", reason="scikit-learn is installed by make test")
    length, n = 128, 1000
    bank, x = sklearn_bank(length), np.linspace(0, 1, length)[:, None]

    def reference(seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        rows = []
        for i in range(n):
            folded_kernel = folded(rng, [bank[e] for e in rng.integers(0, 33, rng.integers(1, 6))])
            rows.append(process.GaussianProcessRegressor(folded_kernel).sample_y(x, random_state=seed * n + i)[:, 0])
        return np.array(rows)

    first, second = reference(1), reference(2)
    ours = np.concatenate([kernel.generate(keyed_generator(3, "kernel", c), length, 100) for c in range(n // 100)])
    rng = np.random.default_rng(4)
    smaller = np.array([kernel.sample(rng, kernel.draw_monomials(rng, 3), length) for _ in range(n)])
    assert_holm(compare(first, second))
    assert_holm(compare(first, ours.astype(np.float64)))
    with pytest.raises(AssertionError):
        assert_holm(compare(first, smaller.astype(np.float64)))


def compare(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    """p of a two-sample KS test of each statistic."""
    one, other = statistics(a), statistics(b)
    return {name: float(stats.ks_2samp(one[name], other[name]).pvalue) for name in one}


def statistics(rows: np.ndarray) -> dict[str, np.ndarray]:
    """Of each row; of those that vary, where the statistic is one of shape."""
    sd = rows.std(axis=1)
    varied = sd > 1e-6 * np.abs(rows).max(axis=1)
    z = (rows[varied] - rows[varied].mean(axis=1, keepdims=True)) / sd[varied, None]
    t = np.linspace(-1, 1, rows.shape[1]) * np.sqrt(3)
    power = np.abs(np.fft.rfft(z))[:, 1:] ** 2
    share = power / power.sum(axis=1, keepdims=True)
    frequency = np.log(np.arange(1, power.shape[1] + 1))
    return {
        "log sd": np.log10(sd + 1e-6),
        "log |mean|": np.log10(np.abs(rows.mean(axis=1))),
        "log max": np.log10(np.abs(rows).max(axis=1)),
        "skew": stats.skew(z, axis=1),
        "kurtosis": stats.kurtosis(z, axis=1),
        **{f"acf {k}": np.mean(z[:, k:] * z[:, :-k], axis=1) for k in (1, 2, 7, 24)},
        "entropy": -(share * np.log(share + 1e-12)).sum(axis=1),
        "slope": np.polyfit(frequency, np.log(power + 1e-9).T, 1)[0],
        "trend": np.mean(z * t, axis=1) ** 2,
    }
