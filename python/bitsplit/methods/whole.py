"""The last step of a chain: the whole network is tuned to give what the float network gives.

Unit after unit each fit sees its own error only; what they add up to shows at the network's output.  So
scales, biases and, within one level, integers of all layers are learned together, from the divergence of the
class probabilities (of networks without class scores: the error of the output) and the errors of all units'
outputs.  No labels are needed.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.utils import _pytree as pytree

from bitsplit.device import device_of
from bitsplit.methods.base import Method
from bitsplit.methods.clock import Clock
from bitsplit.methods.learning import (
    Diverged,
    LearnedBiases,
    LearnedScales,
    LearnedSteps,
    Variables,
    WeightVariables,
    fitted,
    learning,
    set_fitted,
    slower,
    sound,
)
from bitsplit.methods.registry import register
from bitsplit.methods.soft_rounding import SoftRounding
from bitsplit.methods.tasks import LayerTask, Run
from bitsplit.ops.loss import class_divergence
from bitsplit.ops.precision import Precision, chosen_precision, computing_in, forward_in
from bitsplit.ops.rounding import rounding_schedule
from bitsplit.quantizers import refresh_weight

Outputs = Literal["classes", "values"]

LEAN = 0.99  # of a rounding variable towards the code that was chosen before


@register
class Global(Method):
    """Adam on the logarithms of weight scales, on biases and on the steps of inputs, all of them together.

    epochs: passes over the calibration batches, in their order.
    scale_rate, bias_rate, step_rate: learning rates, which fall to 0 along half a cosine; with integers to
    learn that of the scales stays.
    rate: of the rounding variables of all weights; 0 leaves the integers alone.
    regularizer: what pushes these to a decision.
    outputs: what a tensor [images, two or more] that the network gives holds: scores of ``classes``, whose
    probabilities are compared, or ``values`` that stand for themselves, as all other outputs do.
    units: weight of the errors of the units' outputs beside the divergence at the network's end.
    precision: of convolutions and products while it learns.
    """

    name = "global"
    epochs: int = Field(10, ge=0)
    scale_rate: float = Field(1e-3, ge=0)
    bias_rate: float = Field(1e-3, ge=0)
    step_rate: float = Field(4e-4, ge=0)
    rate: float = Field(0.0, ge=0)
    regularizer: float = Field(1e-4, ge=0)
    outputs: Outputs = "classes"
    units: float = Field(1.0, ge=0)
    precision: Precision = "auto"

    def prepare(self, run: Run) -> None:
        chosen_precision(self.precision, device_of(run.student))

    def finish(self, run: Run) -> None:
        if self.epochs == 0 or run.batch_count == 0:
            return
        tasks = run.tasks()
        start, before = fitted(tasks), self._distance(run)
        attempts = {"tried again at lower rates": self, "kept what it started from": slower(self)}
        for consequence, method in attempts.items():
            try:
                method._tune(run, tasks)
                after = self._distance(run)
            except Diverged:
                after = math.inf
            if after <= before:
                return
            set_fitted(tasks, start)
            warnings.warn(f"global: no gain ({before:.3g} -> {after:.3g}), {consequence}", stacklevel=2)

    def _tune(self, run: Run, tasks: Sequence[LayerTask]) -> None:
        inputs = {getattr(task.module, "input_quantizer", None): None for task in tasks}
        quantizers = [quantizer for quantizer in inputs if quantizer is not None and quantizer.is_fitted]
        clock = Clock(self.epochs * run.batch_count, device_of(run.student))
        with LearnedSteps(quantizers, self.step_rate, clock) as steps:
            weights = self._weights([task for task in tasks if task.is_fitted], clock)
            self._learn(run, [weights, LearnedBiases(tasks, self.bias_rate, clock), steps], clock)
            weights.harden()

    def _weights(self, tasks: Sequence[LayerTask], clock: Clock) -> WeightVariables:
        if self.rate == 0:
            return Scales(tasks, self.scale_rate, clock)
        schedule = rounding_schedule(clock.iterations, self.rate, self.regularizer)
        return SoftRounding(tasks, schedule, clock, LEAN, self.scale_rate)

    def _learn(self, run: Run, variables: Sequence[Variables], clock: Clock) -> None:
        parameters = [parameter for some in variables for parameter in some.parameters]
        with learning(run.student, parameters, self.precision, clock.device), _Outputs(run) as outputs:
            for iteration in run.iterations(self.name, clock.iterations):
                if iteration % run.batch_count == 0:
                    batches = run.batches()
                clock.begin()
                distance, errors = self._losses(run, *next(batches), outputs, self.precision)
                if iteration == 0 and not distance.requires_grad:
                    warnings.warn(
                        "global: the network's output has no gradient, only its units' outputs are learned",
                        stacklevel=2,
                    )
                loss = distance + errors
                run.show(loss.detach())
                if not (loss.requires_grad and torch.isfinite(loss)):
                    return
                loss.backward()
                for some in variables:
                    some.step()
                clock.advance()

    def _distance(self, run: Run) -> float:
        """The loss of the network as it is, mean over the batches."""
        with computing_in("fp32", device_of(run.student)), _Outputs(run) as outputs:
            losses = [sum(self._losses(run, *batch, outputs)) for batch in run.batches()]
            return sum(map(float, losses)) / run.batch_count

    def _losses(
        self, run: Run, index: int, batch: Any, outputs: _Outputs, precision: Precision = "fp32"
    ) -> tuple[Tensor, Tensor]:
        """The divergence at the network's end, and the weighted errors of the units."""
        outputs.clear()
        with torch.no_grad():
            wanted = run.forward(run.teacher, index, batch)
        with forward_in(precision, device_of(run.student)):
            got = run.forward(run.student, index, batch)
        return divergence(got, wanted, self.outputs), self.units * outputs.error()


def divergence(got: Any, wanted: Any, outputs: Outputs = "classes") -> Tensor:
    """Of class probabilities where the network gives class scores, else the relative error of its output.

    0 for outputs that cannot be compared.
    """
    if outputs == "classes" and isinstance(got, Tensor) and got.dim() == 2 and got.shape[1] > 1:
        return class_divergence(got, wanted) / len(got)
    if not comparable(got, wanted):
        return torch.zeros(())
    errors = [relative(a, b) for a, b in zip(_values(got), _values(wanted), strict=True)]
    return torch.stack(errors).mean() if errors else torch.zeros(())


def comparable(got: Any, wanted: Any) -> bool:
    """Whether both networks give values of the same shapes."""
    return [value.shape for value in _values(got)] == [value.shape for value in _values(wanted)]


def _values(output: Any) -> list[Tensor]:
    leaves = pytree.tree_leaves(output)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def relative(got: Tensor, wanted: Tensor) -> Tensor:
    """Squared error over energy."""
    return (got - wanted).square().sum() / wanted.square().sum().clamp(min=1e-12)


class _Outputs:
    """What the units of both models gave in the last forward of each."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._given: tuple[list[Tensor], list[Tensor]] = ([], [])
        self._hooks = ExitStack()

    def __enter__(self) -> _Outputs:
        for model, given in zip((self._run.teacher, self._run.student), self._given, strict=True):
            for unit in self._run.network.units:
                # copies, because what comes next may change them in place
                hook = model.get_submodule(unit.name).register_forward_hook(
                    lambda module, args, output, given=given: given.append(output.clone())
                )
                self._hooks.callback(hook.remove)
        return self

    def __exit__(self, *_: object) -> None:
        self._hooks.close()

    def clear(self) -> None:
        for given in self._given:
            given.clear()

    def error(self) -> Tensor:
        """The mean relative error of the student's units."""
        return torch.stack([relative(b, a) for a, b in zip(*self._given, strict=True)]).mean()


class Scales:
    """The logarithms of the weight scales of all layers, whose ``weight`` parameters follow them."""

    def __init__(self, tasks: Sequence[LayerTask], rate: float, clock: Clock) -> None:
        self._layers = [task.module for task in tasks]
        self.parameters = [layer.weight for layer in self._layers]
        quantizers = [layer.weight_quantizer for layer in self._layers]
        scales = [(q, layer.weight, q.scale) for q, layer in zip(quantizers, self._layers, strict=True)]
        self._scales = LearnedScales(scales, rate, clock)

    def step(self) -> None:
        """Learn from the gradients of the weights, and forget them."""
        self._scales.step()
        for layer in self._layers:
            layer.weight.grad = None
            refresh_weight(layer)

    def harden(self) -> None:
        """The model has had the result since the last step."""
        for layer in self._layers:
            sound(layer.weight_quantizer.scale)

    def undecided(self) -> float:
        """None: integers stay as they are."""
        return 0.0
