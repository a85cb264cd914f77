"""Contiguous patch masking and the pinball loss, by their properties."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from toto_train.model.scaler import causal_loc_scale
from toto_train.model.toto import QUANTILES, Prediction
from toto_train.objective import labels_and_weights, loss_sum, patch_mask, pinball

PATCH = 32


def runs(hidden: np.ndarray) -> list[int]:
    """Lengths of the runs of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], hidden.astype(int), [0]])))
    return list(edges[1::2] - edges[::2])


@st.composite
def rows(draw):
    variates, patches = draw(st.integers(1, 6)), draw(st.integers(2, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    observed = rng.random((variates, patches)) < draw(st.sampled_from([0.3, 0.8, 1.0]))
    ids = np.sort(rng.integers(0, 3, variates))
    return observed, ids, rng


@settings(max_examples=200, deadline=None)
@given(rows(), st.integers(1, 16), st.floats(0, 0.9))
def test_masks_keep_their_promises(row, max_span, max_rate):
    observed, ids, rng = row
    visible = patch_mask(rng, observed, ids, max_span, max_rate)
    assert visible.shape == observed.shape
    for v in range(len(ids)):
        if observed[v].any():
            assert visible[v, observed[v].argmax()], "the first observed patch is hidden"
    for series in np.unique(ids):
        members = np.flatnonzero(ids == series)
        hidden = ~visible[members]
        starts = [observed[m].argmax() for m in members if observed[m].any()]
        if not starts:
            assert not hidden.any()
            continue
        first = min(starts)
        assert not hidden[:, : first + 1].any()
        shared = hidden.any(axis=0)
        # variates of a series share their spans, except where one has its own first patch
        for m in members:
            differs = np.flatnonzero(shared & visible[m])
            assert set(differs) <= ({observed[m].argmax()} if observed[m].any() else set())
        assert shared.sum() <= round(max_rate * (observed.shape[1] - first))


def test_realised_rate_and_span_lengths_follow_the_draws():
    """Over many rows of 128 patches: mean rate p_max/2, and isolated spans no longer than drawn."""
    rng = np.random.default_rng(0)
    observed, ids = np.ones((1, 128), bool), np.zeros(1, int)
    masks = np.stack([~patch_mask(rng, observed, ids, 16, 0.4)[0] for _ in range(4000)])
    rates = masks.mean(axis=1)
    # mean of U(0, 0.4) is 0.2 with sd 0.1155; 4000 rows give a standard error of 0.0018
    assert abs(rates.mean() - 0.2) < 0.008
    assert rates.max() <= 0.4 + 0.5 / 128
    assert np.histogram(rates, bins=4, range=(0, 0.4))[0].min() > 900  # uniform: 1000 each
    single = np.stack([~patch_mask(rng, observed, ids, 1, 0.02)[0] for _ in range(2000)])
    assert max(max(runs(m), default=0) for m in single) <= 3  # spans of one patch, two or three of them at most
    long = [max(runs(m), default=0) for m in masks]
    assert np.mean(np.array(long) >= 8) > 0.4  # spans are contiguous: half of the draws are longer than 8


def test_spans_start_anywhere():
    """Spans of one patch among 21: each of the 20 behind the first is hidden as often as the others."""
    rng, rows = np.random.default_rng(0), 4000
    masks = ~patch_mask(rng, np.ones((rows, 21), bool), np.arange(rows), 1, 0.4)
    hidden = masks.sum(axis=0)
    assert hidden[0] == 0
    # about 20 % of 4,000 are 800, with a standard deviation of some 25; 4.5 of those for 20 places
    assert np.abs(hidden[1:] - hidden[1:].mean()).max() < 115
    # the rate is of all 21: 4.2 a row, and not 4.0; standard error 0.04
    assert abs(hidden.sum() / rows - 4.2) < 0.12


def test_spans_have_up_to_the_longest_length():
    """Where two patches of 41 are hidden, they are one span in half of the rows (spans of 1 touch once in 20)."""
    rng, rows = np.random.default_rng(0), 4000
    masks = ~patch_mask(rng, np.ones((rows, 41), bool), np.arange(rows), 2, 2.4 / 41)
    two = masks[masks.sum(axis=1) == 2]
    assert len(two) > 1000
    share = (two[:, 1:] & two[:, :-1]).any(axis=1).mean()
    assert abs(share - (0.5 + 0.5 / 20)) < 0.06


def test_nothing_is_hidden_behind_the_last_observed_patch():
    rng, rows = np.random.default_rng(0), 1000
    observed = np.zeros((rows, 40), bool)
    observed[:, 3:14] = True
    hidden = ~patch_mask(rng, observed, np.arange(rows), 4, 0.9)
    assert not hidden[:, :4].any()
    assert not hidden[:, 14:].any()
    assert abs(hidden.sum() / rows - 0.45 * 11) < 0.4  # of the 11 from the first to the last; standard error 0.09


def test_masks_are_a_function_of_the_generator():
    observed, ids = np.ones((4, 64), bool), np.array([0, 0, 1, 1])
    a, b = (patch_mask(np.random.default_rng(7), observed, ids, 16, 0.4) for _ in range(2))
    assert np.array_equal(a, b)
    assert not np.array_equal(a[0], a[2])


def test_pinball_is_the_weighted_mean_of_quantile_losses_and_has_their_gradient():
    rng = np.random.default_rng(0)
    y, q, w = rng.normal(size=(2, 5, 6)), rng.normal(size=(2, 5, 6, 9)), rng.integers(0, 2, size=(2, 5, 6))
    levels, factors = np.array(QUANTILES), np.arange(1, 11).reshape(2, 5)
    losses = np.where(y[..., None] >= q, levels * (y[..., None] - q), (1 - levels) * (q - y[..., None]))
    slopes = np.where(y[..., None] >= q, -levels, 1 - levels)
    z = torch.tensor(q, requires_grad=True)
    loss = pinball(z, torch.tensor(y), torch.tensor(w).bool())
    (torch.tensor(factors) * loss).sum().backward()
    assert np.allclose(loss.detach().numpy(), (losses.mean(-1) * w).sum(-1))
    assert np.allclose(z.grad.numpy(), factors[..., None, None] * slopes * w[..., None] / 9)


def example(steps: int = 6 * PATCH):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, steps, generator=generator) * 5 + 20
    mask = torch.rand(x.shape, generator=generator) > 0.2
    mask[0, 0, : 2 * PATCH + 5] = False
    mask[1, 1] = False
    return torch.where(mask, x, 0.0), mask


def test_missing_labels_and_positions_without_history_carry_no_weight():
    x, mask = example()
    loc, scale = causal_loc_scale(x, mask, PATCH)
    _, weight = labels_and_weights(x, mask, None, loc, scale, PATCH, 20.0)
    assert not weight[1, 1].any()
    assert not weight[0, 0, :2].any()  # nothing was seen at or before these positions
    assert torch.equal(weight[0, 0, 2:], mask[0, 0].unflatten(-1, (-1, PATCH))[3:])
    assert torch.equal(weight[0, 1], mask[0, 1].unflatten(-1, (-1, PATCH))[1:])


def test_empty_positions_carry_no_weight_and_hidden_ones_do():
    """Patches: observed, observed, missing, observed but hidden, observed."""
    x = torch.arange(5.0 * PATCH).reshape(1, 1, -1)
    mask, cpm = torch.ones_like(x, dtype=torch.bool), torch.ones_like(x, dtype=torch.bool)
    mask[..., 2 * PATCH : 3 * PATCH] = False
    cpm[..., 3 * PATCH : 4 * PATCH] = False
    loc, scale = causal_loc_scale(x, mask & cpm, PATCH)
    _, weight = labels_and_weights(x, mask, cpm, loc, scale, PATCH, 20.0)
    assert weight[0, 0].sum(-1).tolist() == [PATCH, 0, 0, PATCH]


def test_labels_invert_to_the_values():
    x, mask = example()
    loc, scale = causal_loc_scale(x, mask, PATCH)
    label, weight = labels_and_weights(x, mask, None, loc, scale, PATCH, 1e9)
    back = torch.sinh(label) * scale[..., :-1, None] + loc[..., :-1, None]
    truth = x.unflatten(-1, (-1, PATCH))[..., 1:, :]
    torch.testing.assert_close(back[weight], truth[weight], rtol=1e-4, atol=1e-4)


def test_label_clamp_bounds_a_broken_series():
    x, mask = example()
    x[0, 1, 3 * PATCH] = 1e30
    mask[0, 1, 3 * PATCH] = True
    loc, scale = causal_loc_scale(x, mask, PATCH)
    label, _ = labels_and_weights(x, mask, None, loc, scale, PATCH, 20.0)
    assert label.abs().max() <= 20


def test_hidden_and_future_values_never_reach_location_and_scale():
    x, mask = example()
    hidden = torch.ones_like(mask)
    hidden[..., 2 * PATCH : 3 * PATCH] = False
    changed = x.clone()
    changed[..., 2 * PATCH : 3 * PATCH] = 1e6
    changed[..., 5 * PATCH :] = -1e6
    before = causal_loc_scale(x, mask & hidden, PATCH)
    after = causal_loc_scale(changed, mask & hidden, PATCH)
    for a, b in zip(before, after, strict=True):
        assert torch.equal(a[..., :5], b[..., :5])


def test_causal_statistics_match_the_definition():
    x, mask = example()
    loc, scale = causal_loc_scale(x, mask, PATCH)
    for p in range(6):
        seen = x[0, 2, : (p + 1) * PATCH][mask[0, 2, : (p + 1) * PATCH]].double()
        assert float(loc[0, 2, p]) == pytest.approx(float(seen.mean()), rel=1e-6)
        assert float(scale[0, 2, p]) == pytest.approx(float(seen.std()), rel=1e-5)


def test_loss_is_the_weighted_mean_whatever_the_split():
    x, mask = example()
    loc, scale = causal_loc_scale(x, mask, PATCH)
    z = torch.randn(2, 3, 6, PATCH, 9, generator=torch.Generator().manual_seed(1))
    whole = loss_sum(Prediction(z, loc, scale), x, mask, None, PATCH, 20.0)
    parts = [
        loss_sum(Prediction(*(t[i : i + 1] for t in (z, loc, scale))), x[i : i + 1], mask[i : i + 1], None, PATCH, 20.0)
        for i in range(2)
    ]
    torch.testing.assert_close(whole[0], parts[0][0] + parts[1][0])
    assert whole[1] == parts[0][1] + parts[1][1]
