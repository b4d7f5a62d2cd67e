"""QDrop (ICLR 2022): rounding and steps of a block are learned while quantization is dropped at random.

Every element of the block's input comes from the float network, and every activation inside stays float, with
some probability: so the weights learn for activations that differ in many ways from the quantized ones.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor
from torch.utils import _pytree as pytree

from bitsplit.methods.base import Granularity, Piece, Sample, Samples
from bitsplit.methods.clock import Clock
from bitsplit.methods.learning import LearnedSteps
from bitsplit.methods.reconstruction import Reconstruction, seed_of
from bitsplit.methods.registry import register
from bitsplit.ops.steps import mix


@register
class QDrop(Reconstruction):
    """drop: the probability of an activation to stay float, and of an input to be the float network's."""

    name = "qdrop"
    policy: ClassVar[str] = "qdrop"
    unit: Granularity = "block"
    step_rate: float = Field(4e-5, gt=0)
    drop: float = Field(0.5, ge=0, le=1)

    @property
    def granularity(self) -> Granularity:
        return self.unit

    @property
    def mixes_inputs(self) -> bool:
        return self.drop > 0

    def reconstruct(self, piece: Piece, samples: Samples) -> float:
        seed, clock = seed_of(piece), Clock(self.iterations, piece.device)
        with LearnedSteps(piece.quantizers, self.step_rate, clock, self.drop, seed) as steps:
            inputs = MixedInputs(self.drop, seed, clock)
            return self.learn_weights(piece, samples, clock, [steps], inputs=inputs)


class MixedInputs:
    """What a sample calls the piece with, random elements taken from the float network."""

    def __init__(self, share: float, seed: int, clock: Clock) -> None:
        self._share, self._seed, self._clock = share, seed, clock

    def __call__(self, sample: Sample) -> tuple[tuple, dict[str, Any]]:
        inputs = (sample.args, sample.kwargs)
        if sample.float_inputs is None:
            return inputs
        numbers = iter(range(1, 1 << 20))

        def mixed(quantized: Any, exact: Any) -> Any:
            if not isinstance(quantized, Tensor) or not quantized.is_floating_point():
                return quantized
            return mix(quantized, exact, self._share, self._clock.key(self._seed - next(numbers)))

        return pytree.tree_map(mixed, inputs, sample.float_inputs)
