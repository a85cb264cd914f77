"""Which steps are skipped: those whose loss or gradient is not finite, and those whose loss is a spike.

Everything is decided on the device, from values that are the same on every rank, so that no step waits for the host and
all ranks decide alike. A skipped step makes the optimizer's gradients NaN, which it answers by changing nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from toto_train.config_run import GuardConfig

TO_SIGMA = 1.4826
"""Median absolute deviation -> standard deviation, where the losses are normal."""
ROUNDING = 1e-6
"""Least standard deviation, relative to the median: losses that are all the same differ by rounding alone."""


class Guard:
    """The last `window` losses of steps that counted, and how many did not."""

    def __init__(self, config: GuardConfig, device: torch.device):
        self.config = config
        self.losses = torch.full((config.window,), torch.inf, device=device)
        """A ring; infinite where nothing was seen yet."""
        zero = torch.zeros((), dtype=torch.int64, device=device)
        self.seen = zero.clone()
        """Losses that went into the ring."""
        self.non_finite, self.spikes = zero.clone(), zero.clone()
        """Steps skipped for one reason and the other."""
        self.in_a_row = zero.clone()
        """Steps skipped since the last that was not."""
        self.worst = torch.full((), -torch.inf, device=device)
        """Largest score since `forget`, in robust standard deviations above the median; of finite losses."""
        self.given_up = zero - 1
        """The step at which `max_skipped` in a row were reached for the first time; -1 before."""

    def skips(self, loss: Tensor, norm: Tensor, step: int) -> Tensor:
        """Whether step `step` is skipped: [] bool on the device, from its loss [] and gradient norm []."""
        finite = loss.isfinite() & norm.isfinite()
        score = (
            torch.where(finite, self._score(loss), torch.nan) if self.config.spike else torch.full_like(loss, torch.nan)
        )
        spike = score > self.config.spike  # not where it is NaN
        skip = spike | ~finite
        self.worst = torch.fmax(self.worst, score)
        self.non_finite += ~finite
        self.spikes += spike
        place = (self.seen % len(self.losses)).view(1)
        self.losses.scatter_(0, place, torch.where(skip, self.losses.gather(0, place), loss.float()))
        self.seen += ~skip
        self.in_a_row = torch.where(skip, self.in_a_row + 1, 0)
        first = (self.given_up < 0) & (self.in_a_row >= self.config.max_skipped)
        self.given_up = torch.where(first, step, self.given_up)
        return skip

    def _score(self, loss: Tensor) -> Tensor:
        """How many robust standard deviations a loss lies above the median; NaN while half the window is not seen."""
        window = len(self.losses)
        count = self.seen.clamp(max=window)
        middle = torch.stack([(count - 1).clamp(min=0) // 2, count // 2])  # of what is sorted, infinity last
        median = self.losses.sort().values.gather(0, middle).mean()
        spread = TO_SIGMA * (self.losses - median).abs().sort().values.gather(0, middle).mean()
        score = (loss - median) / torch.maximum(spread, ROUNDING * median.abs())
        return torch.where(2 * count >= window, score, torch.nan)

    def forget(self) -> None:
        """Begin a new `worst`."""
        self.worst = torch.full_like(self.worst, -torch.inf)

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint keeps, so that a resumed run skips the same steps: live tensors, to load into as well."""
        names = ("losses", "seen", "non_finite", "spikes", "in_a_row", "worst")
        return {name: getattr(self, name) for name in names}
