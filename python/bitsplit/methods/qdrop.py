"""QDrop (ICLR 2022): rounding and steps of a block are learned while quantization is dropped at random.

Every element of the block's input comes from the float network, not quantized, and every activation inside
stays float, with some probability: so the weights learn for activations that differ in many ways from the
quantized ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor
from torch.utils import _pytree as pytree

from bitsplit.methods.clock import Clock
from bitsplit.methods.learned_rounding import LearnedRounding
from bitsplit.methods.learning import LearnedSteps
from bitsplit.methods.reconstruction import RANGES_TO_LEARN, AnyWeightMethod
from bitsplit.methods.registry import register
from bitsplit.methods.tasks import Piece, Sample, Samples
from bitsplit.ops.steps import mix

MakeInputs = Callable[[Sample], tuple[tuple, dict[str, Any]]]


@register
class QDrop(LearnedRounding):
    """drop: the probability of an activation to stay float, and of an input to be the float network's.

    Quantizers that an earlier piece has act in full.  step_rate: not of steps that are powers of two.
    """

    name = "qdrop"
    policy: ClassVar[str | None] = "qdrop"
    start: AnyWeightMethod = RANGES_TO_LEARN
    step_rate: float = Field(4e-5, gt=0)
    drop: float = Field(0.5, ge=0, le=1)

    @property
    def mixes_inputs(self) -> bool:
        return self.drop > 0

    def reconstruct(self, piece: Piece, samples: Samples) -> float:
        clock = Clock(self.iterations, piece.device)
        with self.dropping(piece, clock) as (steps, inputs):
            return self.learn_weights(piece, samples, clock, [steps], inputs=inputs)

    @contextmanager
    def dropping(self, piece: Piece, clock: Clock) -> Iterator[tuple[LearnedSteps, MakeInputs]]:
        """Steps that are learned while elements are dropped, and what the piece is called with."""
        drops = Drops(self.drop, piece.seed, clock)
        with LearnedSteps(piece.quantizers, self.step_rate, clock, self.drop, drops.key) as steps:
            yield steps, drops.inputs


class Drops:
    """Which elements stay float in an iteration, each with the chance ``share``.

    A quantizer of the piece's input leaves alone what comes from the float network: so each of its elements
    is either float or quantized, as the elements inside of the piece are.
    """

    def __init__(self, share: float, seed: int, clock: Clock) -> None:
        self._share, self._seed, self._clock = share, seed, clock
        self._mixed: list[tuple[Tensor, Tensor]] = []  # inputs of this iteration, with their keys

    def inputs(self, sample: Sample) -> tuple[tuple, dict[str, Any]]:
        """What a sample calls the piece with, random elements taken from the float network."""
        self._mixed.clear()
        if sample.float_inputs is None:
            return sample.args, sample.kwargs
        return pytree.tree_map(self._mix, (sample.args, sample.kwargs), sample.float_inputs)

    def key(self, x: Tensor) -> Tensor:
        """For a quantizer that is called with x."""
        for mixed, key in self._mixed:
            if x.is_set_to(mixed):
                return key
        return self._clock.key(self._seed)

    def _mix(self, quantized: Any, exact: Any) -> Any:
        if not isinstance(quantized, Tensor) or not quantized.is_floating_point():
            return quantized
        key = self._clock.key(self._seed)
        self._mixed.append((mix(quantized, exact, self._share, key), key))
        return self._mixed[-1][0]
