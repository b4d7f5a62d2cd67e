"""BRECQ (ICLR 2021): the rounding of all layers of a block is learned together, then its steps."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from bitsplit.methods.clock import Clock
from bitsplit.methods.learned_rounding import LearnedRounding
from bitsplit.methods.learning import LearnedSteps
from bitsplit.methods.reconstruction import RANGES_TO_LEARN, AnyWeightMethod
from bitsplit.methods.registry import register
from bitsplit.methods.tasks import Piece, Samples


@register
class Brecq(LearnedRounding):
    """Weights first, by rounding; then the steps of the input quantizers under an L_p error.

    step_iterations, step_rate, step_p: of the learned steps.
    """

    name = "brecq"
    policy: ClassVar[str | None] = "brecq"
    start: AnyWeightMethod = RANGES_TO_LEARN
    step_iterations: int = Field(5_000, ge=0)
    step_rate: float = Field(4e-4, gt=0)
    step_p: float = Field(2.4, gt=0)

    def reconstruct(self, piece: Piece, samples: Samples) -> float:
        undecided = self.learn_weights(piece, samples, Clock(self.iterations, piece.device))
        clock = Clock(self.step_iterations, piece.device)
        with LearnedSteps(piece.quantizers, self.step_rate, clock) as steps:
            self.learn(piece, samples, [steps], clock, p=self.step_p)
        return undecided
