"""What a NorMuon step needs whole matrices for: the nearest (semi-)orthogonal one by Polar Express, its rows evened.

Polar Express (arXiv 2505.16932) applies a fixed sequence of odd quintics p(x) = a x + b x^3 + c x^5 to the singular
values. Five of them bring whatever is above 1e-3 of the Frobenius norm to between 0.85 and 1.15, at the cost of
matrix products only.
"""

from __future__ import annotations

import torch
from torch import Tensor

COEFFICIENTS = (
    (8.15655, -22.48329, 15.87877),
    (4.04293, -2.80892, 0.50002),
    (3.89167, -2.77248, 0.50606),
    (3.28575, -2.36813, 0.46449),
    (2.34654, -1.70978, 0.42324),
)
"""(a, b, c) of the five quintics."""

NORM_MARGIN = 1.02
"""The input is divided by this times its Frobenius norm: rounding must not lift a singular value above 1."""

NORM_EPS = 1e-6


def orthogonalize(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """[m, n] -> [m, n] in `dtype`, singular values near 1, singular vectors kept.

    The Gram matrix is formed on the smaller side. A zero matrix gives zeros. Against float64 the relative error is
    about 3e-6 with `dtype` fp32 and 1e-2 to 7e-2 with bf16. fp32 on CUDA must not mean TF32: `resolve_dtype` refuses
    where it is on, and it must stay off.

    One at a time, on every device: a bf16 product in a batch may run another kernel than one alone, and which matrices
    could share a batch would depend on the number of ranks.
    """
    x = matrix.to(dtype)
    norm = torch.linalg.vector_norm(x, dtype=torch.float32)
    x = (x / (NORM_MARGIN * norm + NORM_EPS)).to(dtype)
    tall = x.shape[0] > x.shape[1]
    for a, b, c in COEFFICIENTS:
        gram = x.mT @ x if tall else x @ x.mT
        polynomial = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        left, right = (x, polynomial) if tall else (polynomial, x)
        x = torch.addmm(x, left, right, beta=a)
    return x


def normalized_update(
    update: Tensor, v: Tensor, beta2: float, eps: float, dtype: torch.dtype, normalize: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Whole matrix U [m, n] and v [m] -> O [m, n] in `dtype`, row scale c [m], new v [m]; v is left as it is.

    The normalised update is D = diag(c) O. As ||O||^2 = n sum r_i and ||N||^2 = n sum r_i / (sqrt(v_i) + eps)^2, both
    norms come from r, and no second matrix is made. normalize=False is Muon: c = 1, and v stays.
    """
    o = orthogonalize(update, dtype)
    if not normalize:
        return o, torch.ones_like(v), v
    r = torch.linalg.vector_norm(o, dim=-1, dtype=torch.float32).square() / o.shape[-1]
    v = torch.lerp(r, v, beta2)
    inverse = 1 / (v.sqrt() + eps)
    energy = (r * inverse.square()).sum()
    # A matrix that never had a gradient has r = 0: the floor makes its scale 0 instead of 0/0.
    scale = inverse * (r.sum() / energy.clamp_min(torch.finfo(torch.float32).tiny)).sqrt()
    return o, scale, v


def resolve_dtype(choice: str, device: torch.device) -> torch.dtype:
    """'bf16' | 'fp32' | 'auto' -> dtype; auto takes bf16 where `device` multiplies it natively.

    Raises ValueError on another choice, and on fp32 on CUDA where torch is set to multiply fp32 as TF32.
    """
    if choice == "auto":
        return torch.bfloat16 if multiplies_bf16(device) else torch.float32
    dtypes = {"bf16": torch.bfloat16, "fp32": torch.float32}
    if choice not in dtypes:
        raise ValueError(f"orthogonalize_dtype={choice!r} must be one of auto, bf16, fp32")
    if choice == "fp32" and device.type == "cuda" and torch.backends.cuda.matmul.fp32_precision == "tf32":
        raise ValueError(
            "orthogonalize_dtype='fp32' but torch multiplies fp32 as TF32 here; call "
            "torch.set_float32_matmul_precision('highest') or take bf16"
        )
    return dtypes[choice]


def multiplies_bf16(device: torch.device) -> bool:
    """Whether a device has instructions for it; a CPU without takes tens of times as long as with fp32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False
