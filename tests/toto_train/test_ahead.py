"""Batches that are copied ahead are the same batches; what only a GPU can show is in test_gpu.py."""

import pytest
import torch

from toto_train.data.ahead import ahead


def test_the_same_batches_come_in_order_with_one_more_under_way():
    asked = []

    def batches():
        for k in range(5):
            asked.append(k)
            yield {"target": torch.full((3,), k), "points": k}

    stream = ahead(batches(), torch.device("cpu"))
    for k in range(5):
        batch = next(stream)
        assert batch["target"].tolist() == [k] * 3
        assert batch["points"] == k
        assert asked == list(range(min(k + 2, 5)))
    assert next(stream, None) is None


def test_no_batches_and_a_failing_loader():
    assert list(ahead(iter([]), torch.device("cpu"))) == []

    def fails():
        yield {"target": torch.zeros(1)}
        raise ValueError("shard is gone")

    with pytest.raises(ValueError, match="shard is gone"):
        list(ahead(fails(), torch.device("cpu")))
