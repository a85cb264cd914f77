"""Bytes that a forward and backward pass holds beside weights and gradients, from the shapes alone.

What `fused.py`, `attention.py` and `objective.py` keep for the backward pass, and the most they hold for a moment. Per
patch, with d = d_model, f = d_ff, H heads, O = patch_size x 9 outputs and b bytes an activation:

    a layer              6 d b     its input, q, k, v, attention's output, the MLP's input
      under qk_norm      2 d b     q and k before their norm, and 8 H for its sums
                         3 f b     gate, up, silu(up)
                         4 H + 8   sums of softmax, two norms
    a recomputed layer   d b       its input
    the embedding        2 patch_size b, and 4 d b where 4 d < 16 patch_size (its hidden layer)
    norm and head        6 d b + 4 their inputs, the head's hidden layer
    the loss             4 O       its slope
    a mask               b for each patch (time layer) or variate (variate layer) in sight, where a batch needs one

`scripts/bench/plan.py` holds these to what real steps allocate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from toto_train.config import Config
from toto_train.model.decoder import over_time
from toto_train.model.toto import QUANTILES
from toto_train.planning.layout import FLOAT


@dataclass(frozen=True)
class Activations:
    """Of one micro batch. masks: whether it needs both masks (gaps, several series in a row), as most batches do.

    on_cpu: kernels there convert a whole tensor to float32 where those of a GPU convert in registers.
    """

    config: Config
    masks: bool = True
    on_cpu: bool = False

    @property
    def itemsize(self) -> int:
        """Bytes of an activation."""
        return FLOAT if self.config.parallel.precision == "fp32" else 2

    @property
    def positions(self) -> int:
        """Patches of a variate that are computed: all but the last, which has no label."""
        return self.config.data.length // self.config.model.patch_size - 1

    @property
    def patches(self) -> int:
        return self.config.micro_rows * self.config.data.variates * self.positions

    @property
    def recomputed(self) -> int:
        """How many layers, from the first, keep only their input."""
        return math.ceil(self.config.parallel.activation_checkpointing * self.config.model.num_layers)

    @property
    def casts(self) -> bool:
        """Whether float32 copies of activations come and go."""
        return self.on_cpu and self.itemsize < FLOAT

    def stream(self, widths: float = 1.0) -> int:
        """So many times the residual stream."""
        return int(widths * self.patches * self.config.model.d_model * self.itemsize)

    def hidden(self, widths: float = 1.0) -> int:
        """So many times the MLP's hidden activations."""
        return int(widths * self.patches * self.config.model.d_ff * self.itemsize)

    @property
    def outputs(self) -> int:
        """Entries of a prediction."""
        return self.patches * self.config.model.patch_size * len(QUANTILES)

    def layer(self, i: int) -> int:
        """What layer i keeps where nothing is recomputed."""
        m = self.config.model
        span = self.positions if over_time(m, i) else self.config.data.variates
        mask = self.patches * span * self.itemsize if self.masks else 0  # attention adds it, in its own dtype
        sums = 2 + (3 if m.qk_norm else 1) * m.num_heads
        return self.stream(8 if m.qk_norm else 6) + self.hidden(3) + self.patches * sums * FLOAT + mask

    def kept(self, i: int) -> int:
        """What layer i keeps until its backward pass."""
        return self.stream() if i < self.recomputed else self.layer(i)

    @property
    def flags(self) -> int:
        """Masks as they are made, 1 byte an entry; the forward pass holds them, and layers to be recomputed do."""
        return self.patches * (self.positions + self.config.data.variates) if self.masks else 0

    @property
    def embedding(self) -> int:
        m = self.config.model
        hidden = self.stream(4) if 16 * m.patch_size > 4 * m.d_model else 0  # `_ResidualMLP` keeps it where cheap
        return self.patches * 2 * m.patch_size * self.itemsize + hidden

    @property
    def head(self) -> int:
        """The last norm's and the head's."""
        return self.stream(6) + self.patches * FLOAT

    @property
    def loss(self) -> int:
        return self.outputs * FLOAT

    @property
    def saved(self) -> int:
        """All that a forward pass leaves for its backward pass."""
        layers = sum(self.kept(i) for i in range(self.config.model.num_layers))
        return self.embedding + layers + self.head + self.loss + (self.flags if self.recomputed else 0)

    def below(self, i: int) -> int:
        """What is still kept when the backward pass stands in layer i, that layer's own included."""
        kept = sum(self.kept(j) for j in range(i)) + self.layer(i)
        return self.embedding + kept + (self.flags if self.recomputed else 0)

    @property
    def predicting(self) -> int:
        """Temporaries of the head's forward pass, without its weights: silu, its output, the scaled input."""
        copy = 0 if over_time(self.config.model, self.config.model.num_layers - 1) else 1
        inputs = self.patches * self.config.model.patch_size * (FLOAT + 1)
        return self.stream(4 + copy) + self.outputs * self.itemsize + inputs + (0 if self.recomputed else self.flags)

    @property
    def scoring(self) -> int:
        """Temporaries of the loss: prediction, error, its sign; labels, their weights and these once more by level."""
        labels = self.patches * self.config.model.patch_size
        wide = self.outputs * FLOAT if self.on_cpu else labels * FLOAT  # of the sign; those by level come after it
        return self.outputs * (2 * FLOAT + 1) + labels * (FLOAT + 1) + wide

    @property
    def through_head(self) -> int:
        """Temporaries of the head's backward pass, without those of its weights."""
        wide = self.patches * 4 * self.config.model.d_model * FLOAT if self.casts else 0
        return self.stream(5) + self.outputs * self.itemsize + wide

    def through_layer(self, i: int) -> int:
        """Temporaries of layer i's MLP in the backward pass, where a layer holds most, without those of its weights.

        The hidden gradient and that of gate and up; the gradient that comes (and its copy, where the layout changes
        behind the layer); the unit input, its gradient and a product of both.
        """
        m = self.config.model
        after = over_time(m, i + 1) if i + 1 < m.num_layers else True
        copy = 0 if over_time(m, i) == after else 1
        last = self.stream(2) if not self.casts else self.patches * 2 * m.d_model * FLOAT
        return self.hidden(3) + self.stream(2 + copy) + max(last, self.stream(2))
