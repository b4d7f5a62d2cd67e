"""What the engine gives a method at each of its moments: a layer, a piece, the whole network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from bitsplit.quantizers import ActivationQuantizer, Grid

if TYPE_CHECKING:
    from bitsplit.methods.statistics import InputSample, Statistics
    from bitsplit.network import Columns, Network
    from bitsplit.network.layers import LayerKind

Granularity = Literal["layer", "block", "stage", "net"]
Inputs = Literal["quantized", "float"]  # of a layer: from its quantized predecessors, or in the float network


class View(Protocol):
    """Some columns of a layer's inputs, with other responses."""

    columns: slice

    def of(self, whole: Columns) -> Columns:
        """These columns of a batch, and what they shall answer."""


class LayerTask(Protocol):
    """One layer while it is being fitted.  Matrices have the form [groups, rows, columns]."""

    name: str
    module: nn.Module
    kind: LayerKind
    weight: Tensor  # the float layer's weight matrix [g, M, N], for inputs as the input quantizer emits them
    quantized_weight: Tensor  # what is stored so far, likewise
    bias: Tensor | None  # the float layer's bias [g * M]
    weight_grid: Grid | None
    input_quantizer: ActivationQuantizer | None  # only when this layer is the one that must fit it
    is_fitted: bool  # whether codes have been stored
    seed: int

    def statistics(self, inputs: Inputs, patches: int | None = None, view: View | None = None) -> Statistics:
        """Second moments of the layer's inputs, from ``patches`` sampled patches or from all of them."""

    def halves(self, inputs: Inputs, view: View | None = None) -> tuple[Statistics, Statistics]:
        """Second moments from all patches, of one half of the images and of the other."""

    def mean_error(self) -> Tensor:
        """The float response less that of the module as it is, mean over all positions, Tensor[g * M]."""

    def input_sample(self, limit: int, inputs: Inputs, per_channel: bool = False) -> InputSample:
        """Up to ``limit`` values of the layer's input and its exact range."""

    def take_up_input_scales(self) -> None:
        """Where the input has a scale for every channel, give them to the weights of all that reads it.

        From then on layers that have not been fitted yet compute with its integers too.
        """

    def store(self, codes: Tensor, scale: Tensor, zero_point: Tensor | None = None) -> None:
        """Set the weight: codes [g, M, N], scale [g, M]."""

    def store_bias(self, bias: Tensor) -> None:
        """Set the bias [g * M]; a layer without one gets one."""


class Sample(NamedTuple):
    """What a piece read and shall give: of one batch, or of random rows.

    args, kwargs: of its call, from the quantized predecessors.  target: what the float piece gave.
    weight: of every element's error, or None.  float_inputs: args and kwargs in the float network, or None.
    """

    args: tuple
    kwargs: dict[str, Any]
    target: Tensor
    weight: Tensor | None
    float_inputs: tuple[tuple, dict[str, Any]] | None


class Draws(Protocol):
    """card: the GPU on which all calls are the same work; None when there is none."""

    card: torch.device | None

    def __call__(self) -> Sample:
        """Valid until the next call."""


class Samples(Protocol):
    """All samples of a piece.  mean_weight: of all weights, 1 without any."""

    mean_weight: float

    def draws(self, count: int, iterations: int, generator: torch.Generator) -> Draws:
        """What gives ``count`` random rows in every iteration."""

    def all(self, count: int) -> Iterator[Sample]:
        """All rows, up to ``count`` at a time."""


class Outcome(NamedTuple):
    """What came of learning a piece.

    before, after: its loss with what it started from, and now, in units of the float outputs' energy.
    undecided: the share of its weights that rounding had not decided when it ended.
    remark: what was unusual, or ''.  figures: what else has been measured, by name.
    """

    before: float
    after: float
    undecided: float
    remark: str = ""
    figures: dict[str, float] = {}  # noqa: RUF012 - nobody changes it


class Piece(Protocol):
    """A layer, a block, a stage or the network while it is learned.

    Its layers have been fitted, what comes before is finished.
    """

    name: str
    module: nn.Module
    layers: tuple[LayerTask, ...]
    quantizers: list[ActivationQuantizer]  # fitted ones, which no earlier piece has
    device: torch.device
    seed: int  # its own, that no other piece has

    def channels(self, output: Tensor) -> int:
        """How many its output has."""

    def run(self, args: tuple, kwargs: dict[str, Any]) -> Tensor:
        """The output of the piece as it is."""

    def responses(self, paired: bool) -> Iterator[tuple[Any, Any]]:
        """What the whole network gives for every batch with the piece as it is now, and what in float.

        What comes later is float as long as it has not been fitted.  paired: rows that the network selects by
        their values are those of the float one; else what they are is a part of the answer.
        """

    def samples(self, *, float_inputs: bool = False, fisher: bool = False) -> AbstractContextManager[Samples]:
        """All samples; with ``float_inputs``, and with ``weight``, when asked for."""

    def iterations(self, count: int) -> Iterator[int]:
        """0, 1, ... count - 1; the user sees progress."""

    def show(self, loss: Tensor) -> None:
        """Beside the progress."""


class Run(Protocol):
    """The whole network while it is being quantized."""

    network: Network
    teacher: nn.Module  # the folded float model
    student: nn.Module  # the model being quantized
    seed: int

    batch_count: int

    def batches(self) -> Iterator[tuple[int, Any]]:
        """The calibration batches with their numbers, from the first, on the device of the models."""

    def tasks(self) -> list[LayerTask]:
        """All layers that the plan quantizes, in execution order."""

    def iterations(self, name: str, count: int) -> Iterator[int]:
        """0, 1, ... count - 1; the user sees progress under ``name``."""

    def show(self, loss: Tensor) -> None:
        """Beside the progress."""

    def forward(self, model: nn.Module, index: int, batch: Any) -> Any:
        """Batch number ``index`` through ``model``; both models select the same rows of it."""

    def input_samples(self, names: Sequence[str], limit: int, inputs: Inputs) -> dict[str, InputSample]:
        """Of every layer named up to ``limit`` values of its input, and their range."""
