"""The benchmarks by the names that tasks= takes. Imports no torch: processes of baselines do without."""

from __future__ import annotations

from toto_train.evaluation.leaderboards.benchmarks import Benchmark
from toto_train.evaluation.leaderboards.boom import BOOM, BOOMLET
from toto_train.evaluation.leaderboards.fev_bench import FEV
from toto_train.evaluation.leaderboards.gift_eval import GIFT_EVAL
from toto_train.evaluation.leaderboards.time_bench import TIME

BENCHMARKS: dict[str, Benchmark] = {
    "gift_eval": GIFT_EVAL, "boom": BOOM, "boomlet": BOOMLET, "fev": FEV, "time": TIME,
}  # fmt: skip
