"""Batches reach the device before they are needed: each is copied while the step before it runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


def ahead(batches: Iterator[dict[str, Any]], device: torch.device) -> Iterator[dict[str, Any]]:
    """The same batches with their tensors on `device`, copied one batch ahead in a stream of its own.

    From pinned memory such a copy takes no time of the step's stream, which waits only for its own batch to be there.
    One more batch than without is on the device.
    """
    streams = torch.get_device_module(device)
    side = streams.Stream() if device.type == "cpu" else streams.Stream(device)
    coming: tuple[dict[str, Any], Any] | None = None
    for batch in batches:
        with streams.stream(side):
            moved = {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}
            arrives = side.record_event()
        if coming is not None:
            yield _arrived(*coming)
        coming = moved, arrives
    if coming is not None:
        yield _arrived(*coming)


def _arrived(batch: dict[str, Any], arrives: Any) -> dict[str, Any]:
    """The batch, for use in the present stream."""
    for value in batch.values():
        if isinstance(value, Tensor) and value.is_cuda:
            present = torch.cuda.current_stream(value.device)
            present.wait_event(arrives)
            value.record_stream(present)  # its memory must not go to a later copy before this stream is done with it
    return batch
