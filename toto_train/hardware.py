"""GPUs by name: what they hold, compute and send; and the peak of the device at hand."""

from __future__ import annotations

import difflib
import os
import re
import time
from dataclasses import dataclass
from functools import lru_cache

import torch

from toto_train.config import ConfigError


@dataclass(frozen=True)
class GPU:
    """One GPU of a kind."""

    pattern: str
    """Of the name that CUDA gives it."""
    memory: float
    """GiB that torch finds."""
    bf16: float
    """TFLOP/s of dense bfloat16 products with float32 sums; 0 where the hardware has none."""
    tf32: float
    fp32: float
    bandwidth: float
    """GB/s of its memory."""
    link: float
    """GB/s that it sends to others of its node."""
    network: float
    """GB/s that it sends to other nodes: its share of a node's adapters, as usual where nothing else is known."""

    def flops(self, precision: str) -> float:
        """Peak FLOP/s of products in a `parallel.precision`. fp32 means float32, unless torch was told that it may be
        TF32."""
        if precision != "fp32":
            return 1e12 * self.bf16
        return 1e12 * (self.tf32 if torch.get_float32_matmul_precision() != "highest" and self.tf32 else self.fp32)


# Peaks without sparsity, from the makers' data sheets: A100 (nvidia-a100-datasheet 2021), H100 (tensor-core-gpu
# datasheet), H200, HGX B200, L4, L40S, A10G (AWS G5), V100, Ada architecture white paper (RTX 4090: half rate with
# float32 sums), MI300X. Links one way: NVLink 2, 3, 4 and 5 at 150, 300, 450 and 900 GB/s, seven Infinity Fabric links
# at 64, PCIe 4 and 5 x16 at 32 and 64. Networks: one 400 Gbit/s adapter a GPU (HGX H100 and later, MI300X), 200 (DGX
# A100), 100 (PCIe servers, V100).
GPUS = {
    "a100": GPU(r"A100.*", 79.2, 312, 156, 19.5, 2039, 300, 25),
    "a100-40g": GPU(r"A100.*40GB", 39.5, 312, 156, 19.5, 1555, 300, 25),
    "a10g": GPU(r"A10G", 22.1, 70, 35, 35, 600, 32, 12.5),
    "b200": GPU(r"B200", 178.4, 2250, 1125, 75, 7700, 900, 50),
    "h100": GPU(r"H100(?!.*(PCIe|NVL))", 79.1, 989.4, 494.7, 66.9, 3350, 450, 50),
    "h100-pcie": GPU(r"H100.*PCIe", 79.1, 756, 378, 51.2, 2000, 64, 12.5),
    "h200": GPU(r"H200", 139.8, 989.4, 494.7, 66.9, 4800, 450, 50),
    "l4": GPU(r"L4", 22.0, 121, 60, 30.3, 300, 32, 12.5),
    "l40s": GPU(r"L40S", 44.4, 362, 183, 91.6, 864, 32, 12.5),
    "mi300x": GPU(r"MI300X", 191.9, 1307.4, 653.7, 163.4, 5300, 448, 50),
    "rtx4090": GPU(r"RTX 4090(?! Laptop)", 23.6, 165.2, 82.6, 82.6, 1008, 32, 1.25),
    "v100": GPU(r"V100.*32GB", 31.7, 0, 0, 15.7, 900, 150, 12.5),
    "v100-16g": GPU(r"V100.*", 15.8, 0, 0, 15.7, 900, 150, 12.5),
}


def find_gpu(name: str, key: str = "hardware.gpu") -> GPU:
    """The GPU of a name. Raises ConfigError naming the setting `key` and all names."""
    if name not in GPUS:
        close = difflib.get_close_matches(name.lower(), GPUS, 1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise ConfigError([f"{key}={name!r} is not in the table of GPUs; {hint}known: {', '.join(GPUS)}"])
    return GPUS[name]


def name_of(device_name: str) -> str:
    """Key in GPUS of a GPU by the name CUDA gives it ('NVIDIA H100 80GB HBM3' -> 'h100'); '' where it is not there."""
    found = [key for key, gpu in GPUS.items() if re.search(rf"\b{gpu.pattern}(?![\w.])", device_name)]
    return max(found, key=lambda key: len(GPUS[key].pattern), default="")


def peak_flops(device: torch.device | str, precision: str, gpu: str = "auto") -> float:
    """Peak FLOP/s of matrix products on a device of this machine, in a `parallel.precision`.

    By the table where it knows the GPU, which may be named by `gpu` (hardware.gpu); else the fastest of some products
    measured here, once a process.
    """
    device = torch.device(device)
    name = ""
    if device.type == "cuda":
        name = name_of(torch.cuda.get_device_name(device)) if gpu == "auto" else gpu
    if name and GPUS[name].flops(precision):
        return GPUS[name].flops(precision)
    return _measured(device, torch.float32 if precision == "fp32" else torch.bfloat16, torch.get_num_threads())


@lru_cache
def _measured(device: torch.device, dtype: torch.dtype, threads: int) -> float:
    """FLOP/s of the fastest square product, which takes a fifth of a second or less."""
    best = 0.0
    for n in (512, 1024, 2048, 4096, 8192):
        a, b = (torch.ones(n, n, device=device, dtype=dtype) for _ in range(2))
        seconds = min(_seconds(a, b) for _ in range(8))
        best = max(best, 2 * n**3 / seconds)
        if seconds > 0.01:
            break
    return best


def _seconds(a: torch.Tensor, b: torch.Tensor) -> float:
    begin = time.perf_counter()
    torch.mm(a, b)
    if a.device.type == "cuda":
        torch.cuda.synchronize(a.device)
    return time.perf_counter() - begin


def memory_bytes(device: torch.device | str) -> int:
    """Of a device of this machine."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
