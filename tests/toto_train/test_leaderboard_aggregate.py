"""Means, ranks and parts of the leaderboards, on cases done by hand."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import gmean

from toto_train.evaluation.leaderboards import aggregate, boom, gift_eval

INF, NAN = math.inf, math.nan


def table(configurations: str, **forecasters: list[float]) -> pd.DataFrame:
    return pd.DataFrame(forecasters, index=configurations.split())


def test_relative_is_the_geometric_mean_of_ratios():
    scores = table("a b c", ours=[1.0, 2.0, 8.0], other=[4.0, 4.0, 4.0], naive=[2.0, 4.0, 4.0])
    found = aggregate.relative(scores, "naive")
    assert found["ours"] == pytest.approx((0.5 * 0.5 * 2) ** (1 / 3))
    assert found["other"] == pytest.approx((2 * 1 * 1) ** (1 / 3))
    assert found["naive"] == 1
    assert aggregate.undefined(scores, "naive") == []


@pytest.mark.parametrize("bad", [0.0, INF, NAN])
@pytest.mark.parametrize("where", ["ours", "other", "naive"])
def test_a_configuration_without_a_ratio_counts_for_nobody(bad, where):
    scores = table("a b", ours=[1.0, 3.0], other=[4.0, 4.0], naive=[2.0, 4.0])
    scores.loc["b", where] = bad
    found = aggregate.relative(scores, "naive")
    assert found.to_dict() == pytest.approx({"ours": 0.5, "other": 2.0, "naive": 1.0})
    assert aggregate.undefined(scores, "naive") == ["b"]


def test_equal_scores_share_their_rank_and_missing_ones_come_last():
    scores = table("a b c", x=[1.0, 2.0, NAN], y=[1.0, 1.0, 5.0], z=[3.0, INF, 4.0])
    # a: 1.5 1.5 3; b: 2 1 3; c: 3 2 1
    assert aggregate.mean_ranks(scores).to_dict() == pytest.approx({"x": 6.5 / 3, "y": 1.5, "z": 7 / 3})


def test_the_shifted_mean_survives_a_zero():
    values = table("a b", plain=[4.0, 9.0], zero=[0.0, 1.0], wrong=[1.0, NAN])
    found = aggregate.shifted_mean(values)
    assert found["plain"] == pytest.approx(gmean([4 + 1e-5, 9 + 1e-5]) - 1e-5, rel=1e-12)
    assert found["zero"] == pytest.approx(math.sqrt(1e-5 * (1 + 1e-5)) - 1e-5, rel=1e-12)
    assert math.isnan(found["wrong"])


def test_infinite_scores_become_the_mean_of_their_own_column():
    found = aggregate.cleaned(table("a b c d", x=[1.0, INF, 3.0, NAN], y=[10.0, 20.0, -INF, 30.0]))
    assert found["x"].tolist() == [1, 2, 3, 2]
    assert found["y"].tolist() == [10, 20, 20, 30]


NAMES = (
    "ds-1-T/Short/short ds-1-T/Short/long ds-2-T/Short/short ds-2-T/Short/long ds-4-5T/Short/short ds-5-H/Medium/short"
)


def test_all_terms_of_a_dataset_leave_with_one_zero():
    mase = table(NAMES, ours=[1.0] * 6, naive=[1.0, 2.0, 0.0, 1.0, 1.0, NAN])
    apart = aggregate.split_off(mase, "naive", boom.LOW_VARIANCE)
    # ds-2 for the 0 in its short term, ds-4-5T by the list; a missing MASE is no 0
    assert apart.tolist() == [False, False, True, True, True, False]


def test_boom_by_hand():
    mase = table(NAMES, ours=[0.5, 1.0, 9.0, 9.0, 9.0, INF], naive=[1.0, 2.0, 0.0, 1.0, 1.0, NAN])
    crps = table(NAMES, ours=[0.2, INF, 0.3, 0.0, 0.5, 0.4], naive=[0.4, 0.6, 0.3, 0.1, 0.4, 0.2])
    mae = table(NAMES, ours=[7.0, 7.0, 2.0, 0.0, INF, 7.0], naive=[7.0, 7.0, 4.0, 1.0, 1.0, 7.0])
    found = aggregate.boom(mase, crps, mae, "naive", boom.LOW_VARIANCE)

    def shifted(*values: float) -> float:
        return math.exp(np.mean([math.log(v + 1e-5) for v in values])) - 1e-5

    # scaled: ds-1 twice and ds-5. Holes are filled within the part, before dividing: ours MASE 0.75, naive MASE 1.5,
    # ours CRPS 0.3
    ours = found["scaled"].loc["ours"]
    assert ours["MASE"] == pytest.approx(shifted(0.5, 0.5, 0.75 / 1.5), rel=1e-12)
    assert ours["CRPS"] == pytest.approx(shifted(0.5, 0.3 / 0.6, 0.4 / 0.2), rel=1e-12)
    assert ours["rank"] == pytest.approx((1 + 1 + 2) / 3)
    assert found["scaled"].loc["naive", ["MASE", "CRPS"]].to_numpy() == pytest.approx([1, 1])
    # unscaled: ds-2 twice and ds-4-5T; MAE's hole is the mean of 2 and 0, the first CRPS is a tie
    ours = found["unscaled"].loc["ours"]
    assert ours["MAE"] == pytest.approx(shifted(2, 0, 1), rel=1e-12)
    assert ours["CRPS"] == pytest.approx(shifted(0.3, 0.0, 0.5), rel=1e-12)
    assert ours["rank"] == pytest.approx((1.5 + 1 + 2) / 3)
    assert [found[part].attrs["configurations"] for part in ("scaled", "unscaled")] == [3, 3]


def test_boom_without_anything_to_split_off_has_one_part():
    one = table("ds-1-T/Short/short", ours=[1.0], naive=[2.0])
    assert set(aggregate.boom(one, one, one, "naive")) == {"scaled"}


def test_skill_and_win_rate_by_hand():
    errors = table("a b c d", ours=[1.0, 2.0, 1e-9, NAN], other=[2.0, 2.0, 4.0, 8.0], naive=[2.0, 4.0, 1.0, 4.0])
    found = aggregate.fev(errors, draws=200)
    # ours over naive: 0.5, 0.5, clipped to 0.01, missing = 1; other: 1, 0.5, 4, 2
    assert found.loc["ours", "skill_score"] == pytest.approx(1 - (0.25 * 0.01) ** (1 / 4))
    assert found.loc["other", "skill_score"] == pytest.approx(1 - 4 ** (1 / 4))
    # ours against other: win, tie, win, win; against naive: win, win, win, tie
    assert found.loc["ours", "win_rate"] == pytest.approx((3.5 + 3.5) / 8)
    assert found.loc["naive", "win_rate"] == pytest.approx((0.5 + 0.5 + 1 + 1) / 8)
    assert found["win_rate"].mean() == pytest.approx(0.5)
    assert (found["win_rate_lower"] < found["win_rate"]).all()
    assert (found["win_rate"] < found["win_rate_upper"]).all()


def test_a_summary_of_gift_eval_names_what_has_no_ratio():
    metrics = {
        "MASE[0.5]": table("a b", ours=[1.0, 2.0], seasonal_naive=[2.0, NAN]),
        "mean_weighted_sum_quantile_loss": table("a b", ours=[0.1, 0.2], seasonal_naive=[0.2, 0.2]),
    }
    found = gift_eval.summary(metrics)["overall"]
    assert found["forecasters"]["ours"] == pytest.approx(
        {"MASE": 0.5, "CRPS": math.sqrt(0.5), "MASE rank": 1.0, "CRPS rank": 1.25}
    )
    assert found["without_ratio"] == {"MASE": ["b"], "CRPS": []}
