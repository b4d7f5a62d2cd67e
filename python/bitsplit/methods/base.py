"""What a method is.

A chain of methods is walked once over the network.  Every method may act at four moments and does nothing at
those it does not override: ``prepare`` (the folded float model, before anything is quantized), ``fit_layer``
(each layer, in execution order), ``fit_piece`` (each layer, block or stage, or the network at once, when the
layers in it have been fitted), ``finish`` (the whole network).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch
from pydantic import BeforeValidator, ConfigDict, SerializeAsAny, model_serializer
from torch import Tensor

from bitsplit.document import Document
from bitsplit.methods.tasks import Granularity, Inputs, LayerTask, Outcome, Piece, Run
from bitsplit.quantizers import ActivationQuantizer, Grid

if TYPE_CHECKING:
    from bitsplit.methods.statistics import InputSample
    from bitsplit.network.layers import LayerKind

WeightLevels = Literal["symmetric", "affine"]

AT_ONCE = 16  # quantizers whose samples are held at the same time


class Config(Document):
    """Options of a method: frozen, checked at construction, unknown names and infinite values refused."""

    model_config = ConfigDict(allow_inf_nan=False)

    name: ClassVar[str]

    @model_serializer(mode="wrap")
    def _with_name(self, handler: Any) -> dict[str, Any]:
        return {"name": self.name, **handler(self)}


class Method(Config):
    """Base of all methods.  policy: the name of its rule for first and last layers, if it has one."""

    policy: ClassVar[str | None] = None

    @property
    def starting(self) -> WeightMethod | None:
        """What gives layers their first weights and input scales: itself, or one that it starts from."""
        return None

    @property
    def granularity(self) -> Granularity | None:
        """The pieces that ``fit_piece`` wants; None when there is nothing to learn."""
        return None

    @property
    def kept_rows(self) -> tuple[int, int]:
        """How many tensors like a piece's inputs, and like its output, are kept while it is learned."""
        return 0, 0

    @property
    def asked_images(self) -> int:
        """Of how many images it compares what the whole network gives, again and again."""
        return 0

    @property
    def defers_inputs(self) -> bool:
        """Whether ``finish`` fits the input quantizers."""
        return False

    @property
    def scales_in_weights(self) -> bool:
        """Whether weights hold the scales of the inputs that they read: then nothing else can read those."""
        return False

    @property
    def needs_free_scales(self) -> bool:
        """Whether its scales cannot be kept to powers of two."""
        return False

    @property
    def makes_powers_of_two(self) -> bool:
        """Whether it asks for scales that are powers of two wherever it stands."""
        return False

    def memory(self, kind: LayerKind, groups: int, columns: int) -> int:
        """Bytes it holds at once while it fits the weights of a layer: second moments, above all."""
        return 0

    def prepare(self, run: Run) -> None:
        """Change the folded float model before anything is quantized."""

    def fit_layer(self, task: LayerTask) -> None:
        """Fit one layer."""

    def fit_piece(self, piece: Piece) -> Outcome | None:
        """Learn the layers of one piece together; None when there is nothing to learn in it."""

    def finish(self, run: Run) -> None:
        """Act on the whole quantized network."""


class ActivationMethod(Config):
    """Sets the scale of an activation quantizer from a sample of its input.

    zero_point: whether it can place one; without, tensors that may be negative get signed levels.
    inputs: what comes from the quantized predecessors, or from the float ones, which is what learned pieces
    shall give.
    """

    zero_point: ClassVar[bool] = True
    sample_limit: ClassVar[int] = 3_000_000
    inputs: Inputs = "quantized"

    def fit(self, sample: InputSample, grid: Grid) -> tuple[Tensor, Tensor]:
        """Scale and zero point, Tensor[1] each; the scale is moved to what ``grid`` allows."""
        raise NotImplementedError

    def fit_layer(self, task: LayerTask, per_channel: bool = False) -> None:
        """Fit the quantizer at the input of ``task`` when it is this layer's turn to do so."""
        quantizer = task.input_quantizer
        if quantizer is not None:
            sample = task.input_sample(self.sample_limit, self.inputs, per_channel)
            quantizer.set(*self._fit(sample, quantizer.grid))

    def fit_network(self, run: Run) -> bool:
        """Fit all quantizers that have not been fitted, each on what comes without any of them.

        False when there are none.
        """
        unfitted: dict[ActivationQuantizer, str] = {}
        for name in run.network.layers:
            quantizer = getattr(run.student.get_submodule(name), "input_quantizer", None)
            if quantizer is not None and not quantizer.is_fitted:
                unfitted.setdefault(quantizer, name)
        pairs, found = list(unfitted.items()), {}
        for start in range(0, len(pairs), AT_ONCE):
            some = pairs[start : start + AT_ONCE]
            samples = run.input_samples([name for _, name in some], self.sample_limit, self.inputs)
            found |= {quantizer: self._fit(samples[name], quantizer.grid) for quantizer, name in some}
        for quantizer, fitted in found.items():
            quantizer.set(*fitted)
        return bool(found)

    def _fit(self, sample: InputSample, grid: Grid) -> tuple[Tensor, Tensor]:
        """Scales and zero points of all channels of ``sample``."""
        found = [grid.allowed(*self.fit(part, grid)) for part in sample.channels()]
        scale, zero_point = (torch.cat(values) for values in zip(*found, strict=True))
        active = (sample.low < 0) | (sample.high > 0)
        if active.any():  # a channel without values gets the scale of a usual one
            scale[~active] = scale[active].median()
        return scale, zero_point


def _activation_method(value: Any) -> Any:
    from bitsplit.methods.registry import activation_method

    return activation_method(value)


# a field that takes an activation method by name, mapping or config
AnyActivationMethod = Annotated[SerializeAsAny[ActivationMethod], BeforeValidator(_activation_method)]


class WeightMethod(Method):
    """A method that fits a layer's input quantizer first and then its weights.

    levels: of the weights: ``symmetric`` around zero, which are 2^bits - 1, or ``affine``: all 2^bits, with a
    zero point for every output channel.  per_tensor: one scale and zero point for all output channels.
    """

    policy: ClassVar[str | None] = "bitsplit"
    activations: AnyActivationMethod
    levels: WeightLevels = "symmetric"
    per_tensor: bool = False

    @property
    def starting(self) -> WeightMethod:
        return self

    def fit_layer(self, task: LayerTask) -> None:
        self.activations.fit_layer(task)
        if task.weight_grid is not None:
            self.fit_weights(task)

    def fit_weights(self, task: LayerTask) -> None:
        """Set the layer's codes and scales."""
        raise NotImplementedError
