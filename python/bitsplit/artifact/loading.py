"""Put a quantized model together again: the float architecture and a file."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from bitsplit.artifact import storage
from bitsplit.artifact.checks import check_complete, check_structure, check_tensors, float_names
from bitsplit.artifact.manifest import Manifest, StoredGrid, StoredLayer
from bitsplit.artifact.packing import unpack
from bitsplit.artifact.state import join, split
from bitsplit.inplace import adopt
from bitsplit.network.baking import make_plain
from bitsplit.network.copying import copied
from bitsplit.network.folded import folded_class
from bitsplit.network.ties import untie_layers
from bitsplit.quantizers import (
    ActivationQuantizer,
    Grid,
    attach_input_quantizer,
    attach_weight_quantizer,
    set_weight,
)
from bitsplit.report import attach_report

Model = TypeVar("Model", bound=nn.Module)


def load(path: str | Path, model: Model) -> Model:
    """Turn ``model``, the float architecture with any weights, into the quantized model of a file, in place.

    Outputs are bit for bit those of the saved model.  Nothing in the file is executed.  Everything is checked
    before ``model`` is touched.  The model stays on its device and is put into eval mode.

    Raises:
        ArtifactError: the file is truncated, altered, of a newer format, or of another architecture.
    """
    path = Path(path)
    manifest, tensors = storage.read(path)
    check_complete(manifest, tensors, path)
    loaded = copied(model)
    check_structure(loaded, manifest, path)
    _take_structure(loaded, manifest)
    check_tensors(loaded, manifest, tensors, path)
    quantizers: dict[str, ActivationQuantizer] = {}
    for stored in manifest.layers:
        _restore_layer(loaded, stored, tensors, quantizers)
    for name in float_names(tensors):
        _restore_tensor(loaded, name, tensors[name])
    attach_report(loaded, manifest.report)
    return adopt(model, loaded.eval())


def _take_structure(model: nn.Module, manifest: Manifest) -> None:
    """Repeat the changes of structure: weights untied or stored instead of computed, norms that pass on."""
    untie_layers(model)
    for name, form in manifest.plain_layers.items():
        make_plain(model.get_submodule(name), form)
    for name in manifest.folded_norms:
        norm = model.get_submodule(name)
        norm.__class__ = folded_class(type(norm))


def _restore_layer(
    model: nn.Module,
    stored: StoredLayer,
    tensors: dict[str, Tensor],
    quantizers: dict[str, ActivationQuantizer],
) -> None:
    layer = model.get_submodule(stored.name)
    device = layer.weight.device
    if stored.weight is not None:
        prefix = join(stored.name, "weight_quantizer")
        codes = unpack(tensors[f"{prefix}.codes"], stored.weight.bits, stored.weight.low, stored.shape)
        attach_weight_quantizer(layer, _grid(stored.weight))
        scales = (tensors[f"{prefix}.{key}"].to(device) for key in ("scale", "zero_point"))
        set_weight(layer, codes.to(device), *scales)
    if stored.input is not None:
        owner = stored.input_owner
        if owner not in quantizers:
            prefix = join(owner, "input_quantizer")
            quantizers[owner] = ActivationQuantizer(_grid(stored.input), stored.channel_axis)
            quantizers[owner].set(tensors[f"{prefix}.scale"], tensors[f"{prefix}.zero_point"])
        block = None if stored.argument is None else model.get_submodule(stored.block)
        attach_input_quantizer(layer, quantizers[owner], block, stored.argument)


def _restore_tensor(model: nn.Module, name: str, value: Tensor) -> None:
    path, key = split(name)
    module = model.get_submodule(path)
    if key in module._parameters and module._parameters[key] is None:
        weight = module.weight
        module._parameters[key] = nn.Parameter(value.to(weight.device), requires_grad=weight.requires_grad)
        return
    with torch.no_grad():
        getattr(module, key).copy_(value)


def _grid(stored: StoredGrid) -> Grid:
    return Grid(**dict(stored))
