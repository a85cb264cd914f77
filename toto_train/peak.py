"""The most FLOPs a second that a device can do: what model FLOPs utilisation refers to."""

from __future__ import annotations

import time

import torch

GPUS = {"b200": (75e12, 2250e12), "h200": (67e12, 989e12), "h100": (67e12, 989e12), "a100": (19.5e12, 312e12)}
"""Part of a GPU's name -> dense peaks in fp32 (without TF32) and in bf16, from NVIDIA's data sheets (SXM)."""


def peak_flops(device: torch.device, precision: str, gpu: str = "auto") -> float:
    """FLOPs a second of one device in the products of parallel.precision; NaN for a GPU that the table lacks.

    gpu: a name of the table, or auto: the device at hand. A CPU is measured, with as many threads as this process has:
    its best matrix product of four, a tenth of a second.
    """
    low = precision != "fp32"
    if device.type == "cpu":
        return _measured(torch.bfloat16 if low else torch.float32)
    name = torch.cuda.get_device_name(device) if gpu == "auto" else gpu
    return next((peaks[low] for key, peaks in GPUS.items() if key in name.lower()), float("nan"))


def _measured(dtype: torch.dtype, size: int = 1024) -> float:
    a = torch.ones(size, size, dtype=dtype)
    best = float("inf")
    for _ in range(4):
        begin = time.perf_counter()
        torch.mm(a, a)
        best = min(best, time.perf_counter() - begin)
    return 2 * size**3 / best
