"""Augmentations: what each does, how often, and that a row depends on its number alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toto_train.config import AugmentConfig
from toto_train.config_check_data import augment_problems as problems
from toto_train.data.augment import active, augment

ALL = dict.fromkeys(AugmentConfig.PROBABILITIES, 0.5)


def generator(n: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=7, counter=[0, 0, 0, n]))


def row(windows, variates, length, seed=0, observed=0.9, scale=1.0):
    """A row whose windows hold noise with gaps; all else is empty."""
    rng = np.random.default_rng(seed)
    target, mask = np.zeros((variates, length), np.float32), np.zeros((variates, length), bool)
    for top, bottom, first, end in windows:
        shape = bottom - top, end - first
        mask[top:bottom, first:end] = rng.random(shape) < observed
        target[top:bottom, first:end] = rng.standard_normal(shape) * scale
    target[~mask] = 0
    return target, mask


def augmented(target, mask, windows, n=0, **fields):
    target, mask = target.copy(), mask.copy()
    augment(target, mask, windows, AugmentConfig(**fields), generator(n))
    return target, mask


def one(values, n=0, **fields):
    """A row of one univariate window, all observed."""
    target = np.asarray(values, np.float32)[None]
    out, seen = augmented(target, np.ones(target.shape, bool), [(0, 1, 0, target.shape[1])], n, **fields)
    return out[0], seen[0]


@st.composite
def packed(draw):
    """(variates, length, windows) as rows are packed: side by side, equal variates, own first steps and ends."""
    length, width, count = draw(st.integers(8, 70)), draw(st.integers(1, 3)), draw(st.integers(1, 5))
    windows = []
    for k in range(count):
        steps = draw(st.sampled_from([length, length, draw(st.integers(1, length))]))
        first = draw(st.integers(0, length - steps))
        windows.append((k * width, (k + 1) * width, first, first + steps))
    return count * width + draw(st.integers(0, 2)), length, windows


@settings(max_examples=150, deadline=None)
@given(packed(), st.integers(0, 2**40), st.sampled_from([1e-45, 1e-30, 1.0, 1e30]), st.floats(0, 1))
def test_rows_stay_sound_and_depend_on_their_number_alone(shape, n, scale, observed):
    variates, length, windows = shape
    with np.errstate(under="ignore"):
        target, mask = row(windows, variates, length, n, observed, scale)
    probabilities = dict.fromkeys(AugmentConfig.PROBABILITIES, 0.7)
    values, seen = augmented(target, mask, windows, n, **probabilities)
    again = augmented(target, mask, windows, n, **probabilities)
    assert (values.tobytes(), seen.tobytes()) == (again[0].tobytes(), again[1].tobytes())
    assert (values.dtype, seen.dtype) == (np.float32, bool)
    assert np.isfinite(values).all()
    assert not values[~seen].view(np.uint32).any()  # +0, bit for bit
    outside = np.ones(mask.shape, bool)
    for top, bottom, first, end in windows:
        outside[top:bottom, first:end] = False
        assert seen[top:bottom, first:end].any() == mask[top:bottom, first:end].any()  # nothing loses its last value
    assert not seen[outside].any()
    assert not values[outside].any()


def test_other_rows_draw_otherwise():
    windows = [(0, 1, 0, 64), (1, 2, 0, 64)]
    target, mask = row(windows, 2, 64)
    assert len({augmented(target, mask, windows, n, **ALL)[0].tobytes() for n in range(50)}) > 40


def test_windows_do_not_touch_each_other():
    """Without mixup a window's outcome is the same whatever its neighbours hold."""
    windows = [(0, 2, 0, 64), (2, 4, 10, 64), (4, 6, 0, 64)]
    target, mask = row(windows, 7, 64)
    other, fields = target.copy(), ALL | {"mixup": 0.0}
    other[2:4] *= -3
    for n in range(30):
        (a, seen_a), (b, seen_b) = (augmented(x, mask, windows, n, **fields) for x in (target, other))
        keep = [0, 1, 4, 5, 6]
        np.testing.assert_array_equal(a[keep], b[keep])
        np.testing.assert_array_equal(seen_a, seen_b)


def test_mixup_takes_from_windows_of_its_shape_alone():
    windows = [(0, 1, 0, 64), (1, 2, 0, 64), (2, 3, 0, 64), (3, 4, 32, 64)]
    target, mask = row(windows, 4, 64)
    other = target.copy()
    other[3] *= -2
    changed = 0
    for n in range(20):
        (a, _), (b, _) = (augmented(x, mask, windows, n, mixup=1.0) for x in (target, other))
        np.testing.assert_array_equal(a[:3], b[:3])
        np.testing.assert_array_equal(a[3], target[3])  # alone of its shape
        changed += not np.array_equal(a[:3], target[:3])
    assert changed == 20


def test_nothing_drawn_leaves_the_bytes():
    windows = [(0, 2, 0, 64)]
    target, mask = row(windows, 2, 64)
    target[0, np.flatnonzero(mask[0])[0]] = -0.0
    assert not active(AugmentConfig())
    values, seen = augmented(target, mask, windows)
    assert (values.tobytes(), seen.tobytes()) == (target.tobytes(), mask.tobytes())
    untouched = sum(
        augmented(target, mask, windows, n, sign_flip=0.3)[0].tobytes() == target.tobytes() for n in range(400)
    )
    assert 0.63 < untouched / 400 < 0.77


@pytest.mark.parametrize("name", AugmentConfig.PROBABILITIES)
def test_rates(name):
    """A window (a variate, for censor and missing) changes as often as asked."""
    windows = [(k, k + 1, 0, 400) for k in range(20)]
    target, mask = row(windows, 20, 400, observed=1.0)
    assert active(AugmentConfig(**{name: 0.01}))
    changed = 0
    for n in range(60):
        values, seen = augmented(target, mask, windows, n, **{name: 0.3})
        changed += int(((values != target) | (seen != mask)).any(axis=1).sum())
    # 1200 draws: 5 sigma is 0.066; a share below one value changes nothing, which costs censor and missing some percent
    assert 0.3 - 0.08 < changed / 1200 < 0.3 + 0.07


def test_time_flip_reverses_values_and_mask_of_the_window():
    windows = [(0, 2, 16, 64)]
    target, mask = row(windows, 3, 64, observed=0.6)
    values, seen = augmented(target, mask, windows, time_flip=1.0)
    np.testing.assert_array_equal(values[:2, 16:], target[:2, 16:][:, ::-1])
    np.testing.assert_array_equal(seen[:2, 16:], mask[:2, 16:][:, ::-1])
    assert not seen[:, :16].any()


def test_siblings_share_flips_and_curve():
    windows = [(0, 3, 0, 64), (3, 6, 0, 64)]
    target, mask = row(windows, 6, 64)
    signs = set()
    for n in range(40):
        values, _ = augmented(target, mask, windows, n, sign_flip=0.5)
        flips = [bool((values[v] == -target[v]).all()) for v in range(6)]
        assert all((values[v] == (-1 if flip else 1) * target[v]).all() for v, flip in enumerate(flips))
        assert len(set(flips[:3])) == len(set(flips[3:])) == 1
        signs.add((flips[0], flips[3]))
        values, seen = augmented(target, mask, windows, n, time_flip=0.5)
        backwards = [np.array_equal(seen[v], mask[v][::-1]) for v in range(6)]
        assert len(set(backwards[:3])) == len(set(backwards[3:])) == 1
        values, _ = augmented(target, mask, windows, n, amplitude=1.0)
        ratio = np.divide(values, target, where=mask, out=np.full(mask.shape, np.nan, np.float32))
        assert np.nanmax(np.nanmax(ratio[:3], axis=0) / np.nanmin(ratio[:3], axis=0)) < 1 + 1e-5
        assert not np.allclose(ratio[0], ratio[3], equal_nan=True)
    assert len(signs) == 4  # the two windows draw apart


def test_amplitude_is_a_smooth_positive_curve_of_the_stated_spread():
    """On a constant the outcome is the curve itself."""
    ends = []
    for n in range(400):
        curve, _ = one(np.ones(100), n, amplitude=1.0, amplitude_sigma=0.3)
        assert curve.min() > 0
        bends = np.abs(np.diff(np.log(curve), n=2)) > 1e-4
        assert bends.sum() <= 2 * 3  # three inner knots, each seen by at most two second differences
        ends += np.log(curve[[0, -1]]).tolist()
    assert abs(np.mean(ends)) < 0.06
    assert 0.27 < np.std(ends) < 0.33


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.01, 0.9), st.integers(1, 300), st.booleans())
def test_censor_is_one_sided_and_bounded(n, share, length, ties):
    values = np.random.default_rng(n).standard_normal(length).astype(np.float32)
    if ties:
        values = np.round(values)
    out, seen = one(values, n, censor=1.0, censor_share=share)
    changed = out != values
    assert seen.all()
    assert changed.sum() <= share * length
    assert len(np.unique(out)) > 1 or len(np.unique(values)) == 1
    if changed.any():
        level = np.unique(out[changed])
        assert len(level) == 1
        assert out.max() == level[0] < values[changed].min() or out.min() == level[0] > values[changed].max()


def test_censor_takes_both_sides_and_every_depth():
    values = np.random.default_rng(0).standard_normal(1000)
    outs = [one(values, n, censor=1.0, censor_share=0.2)[0] for n in range(300)]
    above = np.mean([out.max() < values.max().astype("f4") for out in outs])
    depths = np.array([np.mean(out != values.astype("f4")) for out in outs])
    assert 0.4 < above < 0.6
    assert 0.08 < depths.mean() < 0.12
    assert depths.max() > 0.18


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.01, 0.99), st.integers(1, 300), st.floats(0, 1))
def test_missing_is_bounded_and_changes_nothing_else(n, share, length, observed):
    windows = [(0, 1, 0, length)]
    target, mask = row(windows, 1, length, n, observed)
    values, seen = augmented(target, mask, windows, n, missing=1.0, missing_share=share)
    assert not (seen & ~mask).any()
    assert (mask & ~seen).sum() <= share * mask.sum()
    np.testing.assert_array_equal(values[seen], target[seen])
    assert seen.any() or not mask.any()


def test_missing_makes_points_and_gaps():
    lost, longest = [], []
    for n in range(200):
        _, seen = one(np.ones(1000), n, missing=1.0, missing_share=0.2)
        edges = np.flatnonzero(np.diff(np.concatenate([[1], seen.astype(int), [1]])))
        runs = edges[1::2] - edges[::2]
        lost.append(1 - seen.mean())
        longest.append(runs.max(initial=0) / max((~seen).sum(), 1))
    assert 0.08 < np.mean(lost) < 0.11
    scattered, in_one = np.mean(np.array(longest) < 0.15), np.mean(np.array(longest) > 0.3)
    assert 0.2 < scattered < 0.5
    assert in_one > 0.3


@pytest.mark.parametrize("variates", [1, 3])
def test_mixup_of_a_single_window_is_a_no_op(variates):
    windows = [(0, variates, 0, 64)]
    target, mask = row(windows, variates, 64)
    values, seen = augmented(target, mask, windows, mixup=1.0)
    assert (values.tobytes(), seen.tobytes()) == (target.tobytes(), mask.tobytes())


def test_mixup_is_a_convex_combination_in_the_first_scale():
    windows = [(0, 2, 0, 500), (2, 4, 0, 500)]
    target, mask = row(windows, 4, 500)
    target *= np.float32([[1], [1e6], [1e-6], [30]])
    weights = []
    for n in range(60):
        values, seen = augmented(target, mask, windows, n, mixup=1.0)
        both = mask[:2] & mask[2:]
        np.testing.assert_array_equal(seen, np.concatenate([both, both]))
        scale = (np.abs(target).sum(1) / mask.sum(1))[:, None]
        unit = target / scale
        a, b, mixed = unit[:2], unit[2:], values[:2] / scale[:2]
        # the weight of the first window, found on its first variate, explains both variates
        x, y = (a - b)[0][both[0]], (mixed - b)[0][both[0]]
        weights.append(w := (x @ y) / (x @ x))
        np.testing.assert_allclose(mixed[both], (w * a + (1 - w) * b)[both], atol=1e-5)
    assert 0 < min(weights) < 0.25 < 0.75 < max(weights) < 1


def test_mixup_mixes_two_or_three_windows_as_they_were():
    windows = [(k, k + 1, 0, 300) for k in range(6)]
    target, mask = row(windows, 6, 300, observed=1.0)
    unit = target / np.abs(target).mean(axis=1, keepdims=True)
    sizes = []
    for n in range(20):
        values, _ = augmented(target, mask, windows, n, mixup=1.0)
        for k in range(6):
            weights = np.linalg.lstsq(unit.T, values[k] / np.abs(target[k]).mean())[0]
            np.testing.assert_allclose(weights.sum(), 1, atol=1e-4)
            assert weights[k] > 1e-4
            sizes.append(int((np.abs(weights) > 1e-4).sum()))
    assert set(sizes) == {2, 3}  # of six: none is a mix of mixes


def test_mixup_with_an_emptier_window_is_not_made():
    windows = [(0, 1, 0, 100), (1, 2, 0, 100)]
    target, mask = row(windows, 2, 100, observed=1.0)
    mask[1, 40:], target[1, 40:] = False, 0
    values, seen = augmented(target, mask, windows, mixup=1.0)
    np.testing.assert_array_equal(values[0], target[0])
    assert seen[0].all()
    assert not np.array_equal(values[1, :40], target[1, :40])


def test_order_of_application():
    """Censor comes after the flip of sign and of time: what is clipped is an extreme of the outcome."""
    values = np.arange(100.0)
    for n in range(20):
        out, _ = one(values, n, sign_flip=1.0, time_flip=1.0, censor=1.0)
        changed = out != -values[::-1]
        assert changed[0] != changed[-1] or not changed.any()
        holed, seen = one(values, n, sign_flip=1.0, time_flip=1.0, censor=1.0, missing=1.0)
        np.testing.assert_array_equal(holed, np.where(seen, out, 0))


def test_problems_name_the_setting():
    assert problems(AugmentConfig(**ALL)) == []
    assert problems(AugmentConfig(sign_flip=1.5)) == ["data.augment.sign_flip=1.5 must be in [0, 1]"]
    wrong = AugmentConfig(mixup=float("nan"), censor_share=1.0, missing_share=0.0, amplitude_sigma=-1.0)
    found = problems(wrong, "x")
    assert [p.split("=")[0] for p in found] == ["x.mixup", "x.censor_share", "x.missing_share", "x.amplitude_sigma"]
    assert "x.missing=0" in found[2]
