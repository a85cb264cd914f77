"""Every variate of a row knows its source, domain and interval, and losses are summed by them."""

import numpy as np
import pytest

from data_pipelines.assemble import write_shards
from data_pipelines.series import DOMAINS, Series
from toto_train.config import Config, DataConfig, MixtureEntry, ModelConfig
from toto_train.data import strata
from toto_train.data.rows import Rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Sources whose series differ in domain and interval."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("data") / "set"
    series = [
        Series(
            rng.standard_normal((1 + i % 2, 64)).astype(np.float32),
            (1.0, 60.0, 3600.0, 86_400.0)[i % 4],
            f"s{i % 2}",
            str(i),
            DOMAINS[i % 3],
        )
        for i in range(24)
    ]
    write_shards(path, series, {})
    return path


@pytest.mark.parametrize("downsample", [1, 2])
def test_variates_carry_the_stratum_of_their_series(folder, downsample):
    entry = MixtureEntry(str(folder), downsample=downsample)
    rows = Rows(Config(data=DataConfig({"a": entry}, variates=5, length=32), model=ModelConfig(patch_size=16)))
    batch = rows.batch(range(40))
    names = [name for _, name in strata.INTERVALS]
    seen = set()
    for n in range(40):
        spec = rows.order.row(n)
        shards, source = rows.order.open(spec.source)
        top = 0
        for series, _, _ in spec.windows:
            index, meta = shards.index(source)[series], shards.series(source, series)
            stratum, interval = batch["stratum"][n, top], meta.interval * downsample
            source_number, domain, bucket = np.unravel_index(stratum, (2, len(DOMAINS), len(names)))
            assert (rows.labels[source_number], DOMAINS[domain]) == (spec.source, meta.domain)
            ends = [0, *(end for end, _ in strata.INTERVALS)]
            assert ends[bucket] <= interval < ends[bucket + 1]
            assert (batch["stratum"][n, top : top + index["variates"]] == stratum).all()
            seen.add(int(stratum))
            top += index["variates"]
        assert ((batch["stratum"][n] >= 0) & (batch["stratum"][n] < strata.count(2))).all()
    assert len(seen) == 12  # domains x intervals, each in one of the sources


def test_marginals_sum_over_the_other_kinds():
    table = np.arange(strata.count(2) * 2, dtype=float).reshape(-1, 2)
    found = {(kind, name): sums for kind, name, sums in strata.marginals(table, ["a/x", "b/y"])}
    cube = table.reshape(2, len(DOMAINS), len(strata.INTERVALS), 2)
    assert len(found) == 2 + len(DOMAINS) + len(strata.INTERVALS)
    np.testing.assert_array_equal(found["source", "b/y"], cube[1].sum((0, 1)))
    np.testing.assert_array_equal(found["domain", DOMAINS[2]], cube[:, 2].sum((0, 1)))
    np.testing.assert_array_equal(found["interval", "1 to 10 min"], cube[:, :, 2].sum((0, 1)))

    table[0, 0] = np.nan  # the first source's first domain and interval
    found = {(kind, name): sums for kind, name, sums in strata.marginals(table, ["a/x", "b/y"])}
    assert [np.isnan(found[kind]).any() for kind in (("source", "a/x"), ("source", "b/y"))] == [True, False]
    cube[0, 0, 0] = 0
    np.testing.assert_array_equal(found["domain", DOMAINS[0]], cube[:, 0].sum((0, 1)))
