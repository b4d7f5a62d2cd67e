"""Learning one piece of the network after the other to give, quantized, what it gave in float.

The base of the methods that do so.  What is learned, and from which loss, is theirs; the loop is here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, Field, SerializeAsAny, field_validator
from torch import Tensor
from torch.utils import _pytree as pytree

from bitsplit.device import device_of
from bitsplit.methods.activations import MseActivations
from bitsplit.methods.base import Method, WeightMethod
from bitsplit.methods.clock import Clock
from bitsplit.methods.learning import (
    Diverged,
    LearnedBiases,
    Variables,
    WeightVariables,
    learning,
)
from bitsplit.methods.mse import Mse
from bitsplit.methods.outcome import learned
from bitsplit.methods.recorded import Recorded
from bitsplit.methods.tasks import Granularity, LayerTask, Outcome, Piece, Run, Sample, Samples
from bitsplit.network.layers import LayerKind
from bitsplit.ops.loss import reconstruction_loss
from bitsplit.ops.precision import Precision, chosen_precision, forward_in

RANGES = Mse(p=2.4, levels="affine", activations=MseActivations(p=2.4))
# Steps that are learned will read what learned pieces give, which is closer to the float network.
RANGES_TO_LEARN = RANGES.model_copy(update={"activations": MseActivations(p=2.4, inputs="float")})
LOOKED_AT = 50


def _weight_method(value: Any) -> Any:
    from bitsplit.methods.registry import make

    return make(value)


AnyWeightMethod = Annotated[SerializeAsAny[WeightMethod], BeforeValidator(_weight_method)]


class Reconstruction(Method):
    """Learned weights of a piece, and learned steps of its input quantizers.

    unit: what is reconstructed at once.
    start: fits what no earlier method of the chain has fitted.
    loss: ``mse``, or ``fisher``: every output element's error weighted with the squared gradient that the
    network's divergence from the float one has there.
    iterations, batch, rate: of Adam on what decides about the weights, rows an iteration.
    scale_rate, bias_rate: of Adam on the logarithms of weight scales and on biases; 0 leaves them alone.
    precision: of convolutions and products while it learns (``auto``: see ``bitsplit.ops.precision``); what
    was learned is compared with the start in float32.
    """

    unit: Granularity = "block"
    start: AnyWeightMethod = RANGES
    loss: Literal["mse", "fisher"] = "mse"
    iterations: int = Field(20_000, ge=0)
    batch: int = Field(32, ge=1)
    rate: float = Field(1e-3, gt=0)
    scale_rate: float = Field(0.0, ge=0)
    bias_rate: float = Field(0.0, ge=0)
    precision: Precision = "auto"

    @property
    def granularity(self) -> Granularity:
        return self.unit

    @field_validator("start")
    @classmethod
    def _starts_layer_by_layer(cls, start: WeightMethod) -> WeightMethod:
        if start.defers_inputs:
            raise ValueError(f"{start.name} with these options fits inputs when all layers are finished")
        return start

    @property
    def starting(self) -> WeightMethod:
        return self.start

    @property
    def scales_in_weights(self) -> bool:
        return self.start.scales_in_weights

    @property
    def needs_free_scales(self) -> bool:
        return self.start.needs_free_scales

    def memory(self, kind: LayerKind, groups: int, columns: int) -> int:
        return self.start.memory(kind, groups, columns)

    def prepare(self, run: Run) -> None:
        chosen_precision(self.precision, device_of(run.student))

    def finish(self, run: Run) -> None:
        self.start.finish(run)

    def fit_layer(self, task: LayerTask) -> None:
        if not task.is_fitted:
            self.start.fit_layer(task)

    def fit_piece(self, piece: Piece) -> Outcome | None:
        if not piece.quantizers and all(layer.weight_grid is None for layer in piece.layers):
            return None
        with piece.samples(float_inputs=self.mixes_inputs, fisher=self.loss == "fisher") as samples:
            return learned(self, piece, samples)

    @property
    def kept_rows(self) -> tuple[int, int]:
        return 1 + self.mixes_inputs, 1 + (self.loss == "fisher")

    @property
    def mixes_inputs(self) -> bool:
        """Whether it wants the float inputs too."""
        return False

    def reconstruct(self, piece: Piece, samples: Samples) -> float:
        """Learn one piece; the share of its weights that has not been decided."""
        return self.learn_weights(piece, samples, Clock(self.iterations, piece.device))

    def weight_variables(self, layers: Sequence[LayerTask], clock: Clock) -> WeightVariables:
        """What decides about the weights of these layers."""
        raise NotImplementedError

    def learn_weights(
        self, piece: Piece, samples: Samples, clock: Clock, others: Sequence[Variables] = (), **options: Any
    ) -> float:
        """Learn all weights of the piece, and ``others``; the share left undecided.

        Options as for ``learn``.
        """
        layers = [layer for layer in piece.layers if layer.weight_grid is not None]
        weights = self.weight_variables(layers, clock)
        variables = [*others, weights]
        if self.bias_rate > 0:
            variables.insert(0, LearnedBiases(layers, self.bias_rate, clock))
        self.learn(piece, samples, variables, clock, **options)
        undecided = weights.undecided()
        weights.harden()
        return undecided

    def learn(
        self,
        piece: Piece,
        samples: Samples,
        variables: Sequence[Variables],
        clock: Clock,
        p: float = 2.0,
        inputs: Callable[[Sample], tuple[tuple, dict[str, Any]]] = lambda s: (s.args, s.kwargs),
    ) -> None:
        """Draw rows, compare the piece's output with the target, step: in all iterations of the clock.

        inputs: what the piece is called with.  ``Diverged`` when the loss is no number, ``RuntimeError`` when
        no output has a gradient.
        """
        parameters = [parameter for some in variables for parameter in some.parameters]
        if not parameters or clock.iterations == 0:
            return
        entering = self._entering(piece)
        generator = torch.Generator().manual_seed(piece.seed)
        draw = samples.draws(self.batch, clock.iterations, generator)
        learns = False

        def iteration() -> Tensor:
            nonlocal learns
            clock.begin()
            for parameter in parameters:
                parameter.grad = None
            sample = draw()
            factor = channels_over_elements(piece, sample.target) / samples.mean_weight
            loss, has_gradient = self._descend(piece, sample, entering(*inputs(sample)), p, factor)
            learns |= has_gradient
            for some in variables:
                some.step()
            clock.advance()
            return loss

        with learning(piece.module, parameters, self.precision, clock.device), self._explaining(piece):
            self._iterate(piece, Recorded(piece.name, iteration, draw.card), clock)
        if not learns:
            raise RuntimeError("its output must depend on its weights, got one without gradient (no_grad?)")

    def _descend(
        self, piece: Piece, sample: Sample, arguments: tuple[tuple, dict[str, Any]], p: float, factor: float
    ) -> tuple[Tensor, bool]:
        """Leave the loss's gradients in the parameters; the loss, and whether it has gradients."""
        args, kwargs = arguments
        with forward_in(self.precision, piece.device):
            output = comparable(piece.run(args, kwargs), sample.target)
        loss = reconstruction_loss(output, sample.target, sample.weight, p, factor)
        if output.requires_grad:
            torch.autograd.backward(output, loss.grad)
        return loss.loss, output.requires_grad

    @contextmanager
    def _explaining(self, piece: Piece) -> Iterator[None]:
        """Tells what helps where the piece's own code takes no half precision."""
        try:
            yield
        except (RuntimeError, TypeError) as error:
            of_dtype = any(word in str(error).lower() for word in ("type", "bfloat16"))
            if of_dtype and chosen_precision(self.precision, piece.device) == "bf16":
                raise RuntimeError(f"{error} (it is learned in bfloat16; try precision='fp32')") from error
            raise

    def _entering(self, piece: Piece) -> Callable[..., tuple[tuple, dict[str, Any]]]:
        """What becomes of the piece's arguments.

        In half precision they enter rounded, so that all that goes through the piece is half as much memory
        to read and write.  Where inputs are quantized, that is decided in float32.
        """
        rounds = chosen_precision(self.precision, piece.device) == "bf16"
        if not rounds or any(hasattr(layer.module, "input_quantizer") for layer in piece.layers):
            return lambda args, kwargs: (args, kwargs)
        return lambda args, kwargs: pytree.tree_map_only(Tensor, in_bf16, (args, kwargs))

    def _iterate(self, piece: Piece, iteration: Callable[[], Tensor], clock: Clock) -> None:
        on_cpu = clock.device.type == "cpu"
        for number in piece.iterations(clock.iterations):
            loss = iteration()
            piece.show(loss)
            if (on_cpu or number % LOOKED_AT == 0) and not math.isfinite(loss):  # a GPU is waited for
                raise Diverged


def channels_over_elements(piece: Piece, target: Tensor) -> float:
    """The factor of a loss that adds up over channels and is a mean over rows and positions."""
    return piece.channels(target) / max(1, target.numel())


def in_bf16(values: Tensor) -> Tensor:
    """Float32 values rounded; others as they are."""
    return values.to(torch.bfloat16) if values.dtype == torch.float32 else values


def comparable(output: Tensor, target: Tensor) -> Tensor:
    """The output in a dtype that the loss takes beside the target's."""
    is_half = output.dtype in (torch.bfloat16, torch.float16) and target.dtype == torch.float32
    return output if is_half else output.to(target.dtype)
