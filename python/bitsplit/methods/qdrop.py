"""QDrop (ICLR 2022): rounding and steps of a block are learned while quantization is dropped at random.

Every element of the block's input comes from the float network, and every activation inside stays float, with
some probability: so the weights learn for activations that differ in many ways from the quantized ones.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.utils import _pytree as pytree

from bitsplit.methods.base import Granularity, Piece, Sample, Samples
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
        seed = seed_of(piece)
        with LearnedSteps(piece.quantizers, self.iterations, self.step_rate, self.drop, seed) as steps:
            return self.learn_weights(piece, samples, [steps], inputs=MixedInputs(self.drop, seed))


class MixedInputs:
    """What a sample calls the piece with, random elements taken from the float network."""

    def __init__(self, share: float, seed: int) -> None:
        self._share, self._seed = share, seed

    def __call__(self, sample: Sample, iteration: int) -> tuple[tuple, dict[str, Any]]:
        inputs = (sample.args, sample.kwargs)
        if sample.float_inputs is None:
            return inputs
        numbers = iter(range(1, 1 << 20))

        def mixed(quantized: Any, exact: Any) -> Any:
            if not isinstance(quantized, Tensor) or not quantized.is_floating_point():
                return quantized
            key = torch.tensor([self._seed - next(numbers), iteration], device=quantized.device)
            return mix(quantized, exact, self._share, key)

        return pytree.tree_map(mixed, inputs, sample.float_inputs)
