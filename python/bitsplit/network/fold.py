"""Fold norms into the layers before them, each checked on the observed batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from bitsplit.errors import FoldError
from bitsplit.network.folded import folded_class
from bitsplit.network.layers import LayerKind
from bitsplit.network.model import Network, Norm
from bitsplit.network.running import outputs_of
from bitsplit.network.selections import Noted, Selections

LARGEST_ERROR = 1e-3


@dataclass(frozen=True)
class FoldReport:
    """What folding did.

    errors: for every norm that was tried, the relative error of its output on the observed batch.
    folded: norm -> layer.  refused: norm -> why it was not folded after all.
    output_error: the relative error of the network's output.
    """

    errors: dict[str, float]
    folded: dict[str, str]
    refused: dict[str, str]
    output_error: float


@dataclass(frozen=True)
class _Pair:
    """A layer and its norm, and what the layer's weight and bias become."""

    norm_name: str
    layer_name: str
    norm: nn.Module
    layer: nn.Module
    weight: Tensor
    bias: Tensor

    @property
    def tail(self) -> list[nn.Module]:
        """What still acts on the output once the norm is folded."""
        return list(self.norm.children())


def fold_norms(network: Network) -> FoldReport:
    """Fold every norm that ``network`` names a layer for, in place; the model's outputs stay the same.

    A norm whose output would change by more than ``LARGEST_ERROR`` (relative, observed batch) stays, and
    ``network.norms`` says so.  ``FoldError`` when the output of the whole network changes by more than that
    (with the same rows selected: the last digit may swap two); the model is then as it was.
    """
    selections = Selections(Noted(), [network.model])
    pairs = [_pair(network, norm) for norm in network.norms if norm.layer is not None and not norm.folded]
    with selections.noting(), selections.of(0):
        before, errors = _trial(network, pairs)
    _refuse_nonfinite(before, errors)
    accepted = [pair for pair in pairs if errors[pair.norm_name] <= LARGEST_ERROR]
    refused = {
        pair.norm_name: f"folded into {pair.layer_name} its output changes by {errors[pair.norm_name]:.1e}"
        for pair in pairs
        if pair not in accepted
    }
    saved = [_apply(pair) for pair in accepted]
    with selections.of(0):
        after = outputs_of(network.model, network.batch, network.step)
    output_error = max(map(relative_error, after, before), default=0.0)
    if not output_error <= LARGEST_ERROR:
        for undo in saved:
            undo()
        raise FoldError(
            f"folding {len(accepted)} norms changes the network's output by {output_error:.1e}, at most "
            f"{LARGEST_ERROR:.0e} is allowed{_worst_of(accepted, errors)}"
        )
    folded = {pair.norm_name: pair.layer_name for pair in accepted}
    network.norms = [_updated(norm, folded, refused) for norm in network.norms]
    return FoldReport(errors, folded, refused, output_error)


def _worst_of(pairs: list[_Pair], errors: dict[str, float]) -> str:
    if not pairs:
        return ": two runs of the same network differ"
    worst = max(pairs, key=lambda pair: errors[pair.norm_name])
    error = f"{errors[worst.norm_name]:.1e}"
    return f"; largest error of one norm: {error} ({worst.norm_name} into {worst.layer_name})"


def _refuse_nonfinite(outputs: list[Tensor], errors: dict[str, float]) -> None:
    """A network that gives NaN cannot be compared with itself."""
    if not all(bool(torch.isfinite(output).all()) for output in outputs):
        first = next((name for name, error in errors.items() if not math.isfinite(error)), None)
        where = "" if first is None else f"; the first norm concerned is {first}"
        raise FoldError(f"the network's output on the observed batch holds NaN or Inf{where}")


def relative_error(value: Tensor, reference: Tensor) -> float:
    """``|value - reference| / |reference|`` (Euclidean); the plain difference where the reference is zero."""
    if value.shape != reference.shape:
        return math.inf
    if value.numel() == 0:
        return 0.0
    difference = float(torch.linalg.vector_norm(value.double() - reference.double()))
    size = float(torch.linalg.vector_norm(reference.double()))
    return difference / size if size > 0 else difference


def _updated(norm: Norm, folded: dict[str, str], refused: dict[str, str]) -> Norm:
    if norm.name in folded:
        return replace(norm, folded=True)
    if norm.name in refused:
        return replace(norm, layer=None, reason=refused[norm.name])
    return norm


def _pair(network: Network, norm: Norm) -> _Pair:
    module = network.model.get_submodule(norm.name)
    layer = network.layers[norm.layer]
    weight, bias = _folded_parameters(layer.kind, layer.module, module)
    return _Pair(norm.name, layer.name, module, layer.module, weight, bias)


@torch.no_grad()
def _folded_parameters(kind: LayerKind, layer: nn.Module, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of ``layer`` with the norm's scale and shift in them, computed in float64."""
    factor = torch.rsqrt(norm.running_var.double() + norm.eps)
    gamma, beta = getattr(norm, "weight", None), getattr(norm, "bias", None)
    if gamma is not None:
        factor = factor * gamma.double()
    shift = -norm.running_mean.double() * factor
    if beta is not None:
        shift = shift + beta.double()
    if layer.bias is not None:
        shift = shift + layer.bias.double() * factor
    matrix = kind.matrix(layer, layer.weight.double())
    matrix = matrix * factor.view(matrix.shape[0], matrix.shape[1], 1)
    weight = kind.unmatrix(layer, matrix)
    return weight.to(layer.weight.dtype), shift.to(layer.weight.dtype)


def _trial(network: Network, pairs: list[_Pair]) -> tuple[list[Tensor], dict[str, float]]:
    """One forward of the unfolded network: its outputs, and the largest error of every norm's calls."""
    errors = {pair.norm_name: 0.0 for pair in pairs}
    pending: dict[str, list[Tensor]] = {pair.norm_name: [] for pair in pairs}

    def after_layer(pair: _Pair) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Tensor) -> None:
            with _parameters(module, pair.weight, pair.bias):
                pending[pair.norm_name].append(module.forward(*args, **kwargs))

        return hook

    def after_norm(pair: _Pair) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple, output: Tensor) -> None:
            folded = pending[pair.norm_name].pop(0)
            if folded.numel() != output.numel():  # not what this call of the norm got
                errors[pair.norm_name] = math.inf
                return
            folded = folded.reshape(output.shape)
            for inner in pair.tail:
                folded = inner(folded)
            error = relative_error(folded, output)
            errors[pair.norm_name] = error if error != error else max(errors[pair.norm_name], error)

        return hook

    with ExitStack() as hooks:
        for pair in pairs:
            hooks.callback(pair.layer.register_forward_hook(after_layer(pair), with_kwargs=True).remove)
            hooks.callback(pair.norm.register_forward_hook(after_norm(pair)).remove)
        return outputs_of(network.model, network.batch, network.step), errors


@contextmanager
def _parameters(layer: nn.Module, weight: Tensor, bias: Tensor) -> Iterator[None]:
    """The layer with another weight and bias for a while."""
    old = layer._parameters["weight"], layer._parameters["bias"]
    layer._parameters["weight"] = nn.Parameter(weight, requires_grad=False)
    layer._parameters["bias"] = nn.Parameter(bias, requires_grad=False)
    try:
        yield
    finally:
        layer._parameters["weight"], layer._parameters["bias"] = old


def _apply(pair: _Pair) -> Callable[[], None]:
    """Fold; gives the function that undoes it."""
    layer, norm = pair.layer, pair.norm
    weight, bias, kind = layer.weight.data, layer.bias, type(norm)
    layer.weight.data = pair.weight
    old_bias = None if bias is None else bias.data
    if bias is None:
        layer.bias = nn.Parameter(pair.bias, requires_grad=layer.weight.requires_grad)
    else:
        bias.data = pair.bias
    norm.__class__ = folded_class(kind)

    def undo() -> None:
        layer.weight.data = weight
        layer.bias = bias
        if bias is not None:
            bias.data = old_bias
        norm.__class__ = kind

    return undo
