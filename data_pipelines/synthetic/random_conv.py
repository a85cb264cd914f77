"""One to three random convolutions with non-linearities in between (law: RandomConvAugmenter of TempoPFN)."""

from __future__ import annotations

import numpy as np

from data_pipelines.synthetic.edits import rescaled

PADDINGS = ("reflect", "edge", "wrap")
KERNELS = ("gaussian", "normal", "polynomial", "sobel")
ACTIVATIONS = ("linear", "relu", "tanh")


def random_conv(rng: np.random.Generator, x: np.ndarray) -> np.ndarray:
    """float32 [T] to float32 [T] on the range of x: bias U(-.5, .5) per layer, dilations 1 to 8, odd sizes 3 to 31."""
    y = x
    layers = int(rng.integers(1, 4))
    for layer in range(layers):
        dilation, bias = int(rng.integers(1, 9)), np.float32(rng.uniform(-0.5, 0.5))
        y = convolved(y, draw_kernel(rng, 2 * int(rng.integers(1, 16)) + 1), dilation, str(rng.choice(PADDINGS))) + bias
        activation = rng.choice(ACTIVATIONS) if layer < layers - 1 else "linear"
        y = np.maximum(y, 0) if activation == "relu" else np.tanh(y) if activation == "tanh" else y
    return rescaled(y, x)


def draw_kernel(rng: np.random.Generator, size: int) -> np.ndarray:
    """A bell of sd U(.5, 5), independent normals, a random parabola or a noisy difference, float32 [size].

    In four of five the magnitudes are made to sum to 1.
    """
    kind, at = rng.choice(KERNELS), np.arange(size) - size // 2
    if kind == "gaussian":
        kernel = np.exp(-0.5 * (at / rng.uniform(0.5, 5)) ** 2)
    elif kind == "normal":
        kernel = rng.normal(size=size)
    elif kind == "polynomial":
        kernel = np.polyval(rng.normal(size=3), np.linspace(-1, 1, size))
    else:
        kernel = np.zeros(size)
        kernel[np.abs(at) <= 1] = np.array((-1, 0, 1)) + rng.normal(0, 0.1, 3)
    return (kernel / np.abs(kernel).sum() if rng.random() < 0.8 else kernel).astype(np.float32)


def convolved(x: np.ndarray, kernel: np.ndarray, dilation: int, padding: str) -> np.ndarray:
    """Correlation of x with the kernel spread by `dilation`, float32 [T]; `padding` as in np.pad.

    A sum of shifted copies: cheaper than a dense kernel of 241 taps, and no library picks the order of its additions.
    """
    padded = np.pad(x, len(kernel) // 2 * dilation, mode=padding)  # type: ignore[call-overload]
    total = np.zeros_like(x)
    for tap, weight in enumerate(kernel):
        if weight:
            total += weight * padded[tap * dilation : tap * dilation + len(x)]
    return total
