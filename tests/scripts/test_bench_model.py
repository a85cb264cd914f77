"""Counts of the model's benchmark: what a training step asks of the machine, beside the official modules."""

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts" / "bench"))

from counting import Counter, Recorder
from sides import Batch, Sides, count

FLOAT = 4


@pytest.mark.slow
@pytest.mark.parametrize("masks", [False, True], ids=["no masks needed", "gaps and several series"])
def test_half_the_operations_and_half_the_traffic_of_the_official_modules(masks, monkeypatch):
    pytest.importorskip("toto2", reason="the official package is installed by make test")
    monkeypatch.setenv("BENCH_DEVICE", "cpu")
    steps = Sides.build("small").steps(Batch.draw((1, 8, 1024), masks), bf16=False)
    ours, official = (count(steps[side]) for side in ("ours", "official"))
    assert ours.operations <= 0.5 * official.operations, ours.table()
    assert ours.bytes <= 0.5 * official.bytes, ours.table()
    # neither side computes less, or hides work in products; ours leaves out the last of 32 patches, which has no label
    assert ours.flops == pytest.approx(official.flops * 31 / 32, rel=0.01)


def test_counter_counts_launches_and_distinct_bytes():
    a, b, out = torch.ones(4, 8), torch.ones(8, 3), torch.ones(4, 3)
    row, column = torch.ones(3), torch.ones(4, 8, 1)
    expected = {
        "mm": (lambda: a @ b, 0),
        "mul": (lambda: out * out, 2 * 12),  # read once, written
        "add": (lambda: out + row.expand(4, 3), 12 + 3 + 12),
        "add_": (lambda: out.add_(row), 12 + 3 + 12),
        "sub": (lambda: torch.sub(out, 1, out=torch.empty(4, 3)), 12 + 12),
        "copy_": (lambda: out.copy_(row), 3 + 12),
        "zero_": (lambda: out.zero_(), 12),
        "sum": (lambda: out.sum(), 12 + 1),
        "cat": (lambda: torch.cat([row, row[:2]]), 3 + 2 + 5),
        "mv": (lambda: a @ b[:, 0], 32 + 8 + 4),
        "bmm": (lambda: torch.bmm(a.unsqueeze(1), column), 32 + 32 + 4),  # dot products
    }
    for name, (run, elements) in expected.items():
        with Counter() as counter:
            run()
        assert dict(counter.calls) == {name: 1}
        assert counter.bytes == FLOAT * elements, name
    with Counter() as counter:
        a.t().unflatten(0, (2, 4)).detach().split(2)
        torch.empty_like(a).transpose_(0, 1)
        torch.view_as_complex(a.view(4, 4, 2))
    assert (counter.operations, counter.bytes) == (0, 0)


def test_counter_sees_the_backward():
    x, w = torch.ones(4, 8), torch.ones(3, 8, requires_grad=True)
    with Counter() as counter:
        F.linear(x, w).sum().backward()
    # the gradient of the sum is expanded; sum reads 12 and writes 1, ones_like reads and writes 1
    assert dict(counter.calls) == {"mm": 2, "sum": 1, "ones_like": 1}
    assert counter.bytes == FLOAT * (13 + 2)
    assert counter.flops == 2 * 2 * 4 * 8 * 3
    assert counter.table().splitlines()[-1].split() == ["total", "4", "0.00"]


def test_the_floor_is_the_products_and_attention_without_epilogues():
    x, w, bias, skip = torch.ones(4, 8), torch.ones(8, 3), torch.ones(3), torch.ones(4, 3)
    q = torch.randn(2, 1, 6, 16, requires_grad=True)
    with Recorder() as floor:
        y = torch.addmm(bias, x, w)
        y = torch.addmm(bias, x, w, beta=0)
        y.addmm_(x, w).mul_(2)
        torch.addmm(skip, x, w)
        torch.baddbmm(skip.unsqueeze(1), x.unsqueeze(1).expand(4, 2, 8), w.expand(4, 8, 3))
        x @ w[:, 0]
        F.scaled_dot_product_attention(q, q, q, is_causal=True).sum().backward()
    assert floor.names[:5] == ["addmm", "mm", "mm", "mm", "bmm"]
    assert all("scaled_dot_product" in name for name in floor.names[5:])
    assert len(floor.names) == 7
    assert floor.flops == 2 * 4 * 8 * 3 * 4 + 2 * 4 * 2 * 8 * 3
    before = y.clone(), skip.clone()
    with Counter() as counter:
        floor.replay()
    assert counter.operations == 7
    assert counter.bytes == 0
    assert torch.equal(y, before[0])
    assert torch.equal(skip, before[1])
