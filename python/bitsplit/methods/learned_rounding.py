"""Learned rounding, which AdaRound, BRECQ and QDrop share: every weight goes to one of its two levels."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from bitsplit.methods.clock import Clock
from bitsplit.methods.learning import WeightVariables
from bitsplit.methods.reconstruction import Reconstruction
from bitsplit.methods.soft_rounding import SoftRounding
from bitsplit.methods.tasks import LayerTask
from bitsplit.ops.rounding import rounding_schedule

LEAN = 0.9  # of a rounding variable towards the level that an earlier method has chosen


class LearnedRounding(Reconstruction):
    """regularizer, warm_up: what pushes rounding to a decision, and the share of iterations without it."""

    regularizer: float = Field(0.01, ge=0)
    warm_up: float = Field(0.2, ge=0, lt=1)

    def weight_variables(self, layers: Sequence[LayerTask], clock: Clock) -> WeightVariables:
        schedule = rounding_schedule(clock.iterations, self.rate, self.regularizer, self.warm_up)
        return SoftRounding(layers, schedule, clock, LEAN, self.scale_rate)
