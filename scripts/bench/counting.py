"""Exact counts of what a piece of torch code asks of the machine, and its products and attention timed alone."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

PRODUCTS = {"mm", "addmm", "addmm_", "bmm", "baddbmm", "baddbmm_"}
OVERWRITES = {
    "copy_",
    "fill_",
    "zero_",
    "normal_",
    "uniform_",
    "bernoulli_",
    "random_",
    "_foreach_copy_",
    "_foreach_zero_",
}
"""Operations in place that do not read what stood there."""


class Counter(TorchDispatchMode):
    """Counts the aten operations that run inside, below autograd, and the bytes that the bandwidth-bound ones move.

    operations: every operation but views and bare allocations (empty and its kin): each is a launch on a GPU.
    bytes: read and written by all of them except matrix products and attention. A tensor counts its distinct elements,
    also when it is expanded or passed twice; an operation in place reads and writes its tensor; a buffer for the output
    (out=, copy_) is only written. What a product reads or adds up beside its factors (bias, residual) is part of it; a
    product with a vector is bound by bandwidth and counts.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: collections.Counter[str] = collections.Counter()
        self.moved: collections.Counter[str] = collections.Counter()
        self.flops = 0
        """Of the matrix products, attention not included."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if not (is_allocation(func) or is_view(func, (args, kwargs), out)):
            name = func.overloadpacket.__name__
            self.calls[name] += 1
            if is_product(func, args):
                self.flops += flops(args)
            elif not is_attention(func):
                self.moved[name] += traffic(func, args, kwargs, out)
        return out

    @property
    def operations(self) -> int:
        return self.calls.total()

    @property
    def bytes(self) -> int:
        return self.moved.total()

    def table(self) -> str:
        """Operation, calls and MB, the most bytes first."""
        names = sorted(self.calls, key=lambda name: (-self.moved[name], -self.calls[name]))
        lines = [f"{name:44}{self.calls[name]:6}{self.moved[name] / 1e6:12.2f}" for name in names]
        return "\n".join([*lines, f"{'total':44}{self.operations:6}{self.bytes / 1e6:12.2f}"])


class Recorder(TorchDispatchMode):
    """Keeps the matrix products and attention calls that run inside, forward and backward, to run them again alone.

    `replay` is the floor of the time that the recorded code can take without doing less arithmetic. It calls the same
    operations in the same order on the tensors of the recorded run, so with its shapes, strides, dtypes and sharing;
    all of them exist beforehand and stay warm only as far as the step would keep them. Outputs are allocated by each
    call and dropped. A product that accumulates into a matrix, in place or not, or whose addend has the factor 0 is
    replayed as the plain product of its factors: the floor does not pay for epilogues. A bias stays, as in nn.Linear.
    Products with a vector are left out: they are bound by bandwidth, as a sum over rows is.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Callable[[], Any]] = []
        self.names: list[str] = []
        self.flops = 0
        """Of the matrix products, attention not included."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if is_product(func, args):
            self.flops += flops(args)
            self._keep(*bare(func, args, kwargs))
        elif is_attention(func):
            self._keep(func, args, kwargs)
        return out

    def _keep(self, func: Any, args: Any, kwargs: Any) -> None:
        args, kwargs = tree_map_only(Tensor, Tensor.detach, (args, kwargs))
        self.calls.append(partial(func, *args, **kwargs))
        self.names.append(func.overloadpacket.__name__)

    @torch.no_grad()
    def replay(self) -> None:
        for call in self.calls:
            call()


def factors(args: Any) -> tuple[Tensor, Tensor]:
    """The two matrices, or batches of them, that a product multiplies: its last tensors."""
    a, b = [arg for arg in args if isinstance(arg, Tensor)][-2:]
    return a, b


def flops(args: Any) -> int:
    a, b = factors(args)
    return 2 * a.numel() * b.shape[-1]


def bare(func: Any, args: Any, kwargs: Any) -> tuple[Any, Any, Any]:
    """A product without what it adds up, unless that is a bias."""
    a, b = factors(args)
    name = func.overloadpacket.__name__
    if name == "addmm" and args[0].ndim == 1 and kwargs.get("beta", 1) != 0:
        return torch.ops.aten.addmm.default, args, {k: v for k, v in kwargs.items() if k in ("alpha", "beta")}
    return (torch.ops.aten.mm.default if a.ndim == 2 else torch.ops.aten.bmm.default), (a, b), {}


def is_product(func: Any, args: Any) -> bool:
    """Whether this multiplies two matrices, neither of them a row or a column."""
    if func.overloadpacket.__name__ not in PRODUCTS:
        return False
    a, b = factors(args)
    return min(*a.shape[-2:], b.shape[-1]) > 1


def is_attention(func: Any) -> bool:
    return "scaled_dot_product" in func.overloadpacket.__name__


def is_allocation(func: Any) -> bool:
    return func.overloadpacket.__name__.startswith(("empty", "new_empty"))


def is_view(func: Any, inputs: Any, out: Any) -> bool:
    """Whether this computes nothing: all it returns is memory that it was given."""
    if torch.Tag.inplace_view in func.tags:
        return True
    outs = list(tensors(out))
    given = {t.untyped_storage()._cdata for t in tensors(inputs)}
    return not func._schema.is_mutable and bool(outs) and all(t.untyped_storage()._cdata in given for t in outs)


def traffic(func: Any, args: Any, kwargs: Any, out: Any) -> int:
    """Bytes that an operation reads and writes."""
    read, written = {}, {identity(t): t for t in tensors(out)}
    for i, argument in enumerate(func._schema.arguments):
        value = args[i] if i < len(args) else kwargs.get(argument.name)
        given = {identity(t): t for t in tensors(value)}
        writes = argument.alias_info is not None and argument.alias_info.is_write
        if writes:
            written |= given
        if not (writes and (argument.kwarg_only or func.overloadpacket.__name__ in OVERWRITES)):
            read |= given
    return sum(size(t) for side in (read, written) for t in side.values())


def tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def identity(t: Tensor) -> tuple[Any, ...]:
    return t.untyped_storage()._cdata, t.storage_offset(), t.shape, t.stride(), t.dtype


def size(t: Tensor) -> int:
    """Bytes of the distinct elements of t: strides of 0 repeat them."""
    distinct = 1
    for length, stride in zip(t.shape, t.stride(), strict=True):
        distinct *= length if stride else min(length, 1)
    return distinct * t.element_size()
