"""Write a quantized model to a file."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from bitsplit.artifact import storage
from bitsplit.artifact.manifest import FORMAT, Manifest, StoredGrid, StoredLayer, tensor_hash
from bitsplit.artifact.packing import pack
from bitsplit.artifact.state import float_state, join
from bitsplit.errors import ArtifactError
from bitsplit.network import FoldedNorm
from bitsplit.network.baking import made_plain
from bitsplit.plan import Plan
from bitsplit.quantizers import ActivationQuantizer, Grid, quantized_layers
from bitsplit.report import report_of


def save(model: nn.Module, path: str | Path) -> None:
    """Write a quantized model to one safetensors file; the format is described in docs/artifact.md.

    Weights are stored as integers, packed to their width, with their scales and zero points; everything else
    as it is.  Equal models give equal files.  The file appears whole or not at all.

    Raises:
        ArtifactError: the model is not quantized, or the file cannot be written (full disk, no such folder).
    """
    report = report_of(model)
    if report is None:
        raise ArtifactError(
            f"this {type(model).__name__} is no result of bitsplit.quantize (a part of one cannot be saved)"
        )
    layers, tensors = _quantized_state(model, report.plan)
    for name, value in float_state(model).items():
        tensors[name] = _copy(value)
    manifest = Manifest(
        format=FORMAT,
        model_class=type(model).__qualname__,
        layers=tuple(layers),
        folded_norms=tuple(name for name, module in model.named_modules() if isinstance(module, FoldedNorm)),
        plain_layers=made_plain(model),
        report=report,
        hashes={name: tensor_hash(tensor) for name, tensor in sorted(tensors.items())},
    )
    storage.write(Path(path), tensors, manifest)


def _quantized_state(model: nn.Module, plan: Plan) -> tuple[list[StoredLayer], dict[str, Tensor]]:
    """Descriptions of all quantized layers, and their codes, scales and zero points."""
    layers: list[StoredLayer] = []
    tensors: dict[str, Tensor] = {}
    owners: dict[ActivationQuantizer, str] = {}
    for name, layer in quantized_layers(model):
        fields: dict[str, object] = {}
        weights = getattr(layer, "weight_quantizer", None)
        if weights is not None:
            _require_fitted(name, weights, "weight")
            _require_current(name, layer)
            fields["weight"] = _stored(weights.grid)
            prefix = join(name, "weight_quantizer")
            tensors[f"{prefix}.codes"] = pack(weights.codes, weights.bits, weights.grid.low)
            tensors |= _scales(prefix, weights)
        inputs = getattr(layer, "input_quantizer", None)
        if inputs is not None:
            _require_fitted(name, inputs, "input")
            owner = owners.setdefault(inputs, name)
            fields |= {
                "input": _stored(inputs.grid),
                "input_owner": owner,
                "channel_axis": inputs.channel_axis,
            }
            row = plan.layer(name)
            if row.argument is not None:
                fields |= {"block": row.unit, "argument": row.argument}
            if owner == name:
                tensors |= _scales(join(name, "input_quantizer"), inputs)
        shape, dtype = tuple(layer.weight.shape), str(layer.weight.dtype)
        layers.append(StoredLayer(name=name, shape=shape, dtype=dtype, **fields))
    return layers, tensors


def _scales(prefix: str, quantizer: nn.Module) -> dict[str, Tensor]:
    return {f"{prefix}.{key}": _copy(getattr(quantizer, key)) for key in ("scale", "zero_point")}


def _copy(value: Tensor) -> Tensor:
    return value.detach().cpu().clone(memory_format=torch.contiguous_format)


def _stored(grid: Grid) -> StoredGrid:
    return StoredGrid(**asdict(grid))


def _require_current(name: str, layer: nn.Module) -> None:
    """What is stored are the codes: they must still be what the weight is."""
    quantizer = layer.weight_quantizer
    if layer.weight.dtype == torch.float64:
        raise ArtifactError(
            f"{name} is float64: files hold float32 networks; pass model.float() to bitsplit.quantize"
        )
    is_float32 = quantizer.scale.dtype == layer.weight.dtype == torch.float32
    if not (is_float32 and quantizer.stands_for(layer.weight)):
        raise ArtifactError(
            f"{name}: its weight is no longer what its codes stand for; save the model before it is trained "
            "further or converted to another type"
        )


def _require_fitted(name: str, quantizer: nn.Module, what: str) -> None:
    if not quantizer.is_fitted:
        raise ArtifactError(
            f"the {what} quantizer of {name} is not fitted; quantize the model before saving it"
        )
