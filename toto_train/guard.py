"""Which steps are skipped: those whose loss or gradient is not finite, and those whose loss and gradient are a spike.

A loss alone has to lie further off: the quickstart's highest (10 robust standard deviations above the median) are of
hard batches, with ordinary gradients, and steps to learn from. A gradient alone is none; clipping and NorMuon bound it.

Everything is decided on the device, from values that are the same on every rank, so that no step waits for the host and
all ranks decide alike. A skipped step makes the optimizer's gradients NaN, which it answers by changing nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from toto_train.config_run import GuardConfig

TO_SIGMA = 1.4826
"""Median absolute deviation -> standard deviation, where values are normal."""
ALONE = 3.0
"""How much further off a loss has to lie where its gradient is ordinary."""
ROUNDING = 1e-6
"""Least standard deviation, relative to the median: values that are all the same differ by rounding alone."""


class Guard:
    """The last `window` losses and gradient norms of steps that counted, and how many did not."""

    def __init__(self, config: GuardConfig, device: torch.device):
        self.config = config
        self.recent = torch.full((2, config.window), torch.inf, device=device)
        """Rings of losses and of gradient norms; infinite where nothing was seen yet."""
        zero = torch.zeros((), dtype=torch.int64, device=device)
        self.seen = zero.clone()
        """Steps that went into the rings."""
        self.non_finite, self.spikes = zero.clone(), zero.clone()
        """Steps skipped for one reason and the other."""
        self.in_a_row = zero.clone()
        """Steps skipped since the last that was not."""
        self.worst = torch.full((), -torch.inf, device=device)
        """Largest score since `forget`, of steps whose loss and norm are finite."""
        self.given_up = zero - 1
        """The step at which `max_skipped` in a row were reached for the first time; -1 before."""

    def skips(self, loss: Tensor, norm: Tensor, step: int) -> Tensor:
        """Whether step `step` is skipped: [] bool on the device, from its loss [] and gradient norm []."""
        values = torch.stack([loss, norm]).float().view(2, 1)
        finite = values.isfinite().all()
        score = torch.full_like(self.worst, torch.nan)
        if self.config.spike:
            score = torch.where(finite, self._score(values), score)
        spike = score > self.config.spike  # not where it is NaN
        skip = spike | ~finite
        self.worst = torch.fmax(self.worst, score)
        self.non_finite += ~finite
        self.spikes += spike
        place = (self.seen % self.config.window).expand(2, 1)
        self.recent.scatter_(1, place, torch.where(skip, self.recent.gather(1, place), values))
        self.seen += ~skip
        self.in_a_row = torch.where(skip, self.in_a_row + 1, 0)
        first = (self.given_up < 0) & (self.in_a_row >= self.config.max_skipped)
        self.given_up = torch.where(first, step, self.given_up)
        return skip

    def _score(self, values: Tensor) -> Tensor:
        """How many robust standard deviations loss and norm, [2, 1], lie above their medians: both, or the loss alone
        in units of ALONE; NaN while half the window is not seen."""
        window = self.config.window
        count = self.seen.clamp(max=window)
        middle = torch.stack([(count - 1).clamp(min=0) // 2, count // 2]).expand(2, 2)  # of what is sorted, inf last
        median = self.recent.sort().values.gather(1, middle).mean(1, keepdim=True)
        spread = TO_SIGMA * (self.recent - median).abs().sort().values.gather(1, middle).mean(1, keepdim=True)
        loss, norm = ((values - median) / torch.maximum(spread, ROUNDING * median.abs())).flatten()
        return torch.where(2 * count >= window, torch.maximum(torch.minimum(loss, norm), loss / ALONE), torch.nan)

    def forget(self) -> None:
        """Begin a new `worst`."""
        self.worst = torch.full_like(self.worst, -torch.inf)

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint keeps, so that a resumed run skips the same steps: live tensors, to load into as well."""
        names = ("recent", "seen", "non_finite", "spikes", "in_a_row", "worst")
        return {name: getattr(self, name) for name in names}
