"""Does a file hold together, and does it fit a model?"""

from __future__ import annotations

import math
from pathlib import Path

from torch import Tensor, nn

from bitsplit.artifact.manifest import Manifest, StoredLayer
from bitsplit.artifact.packing import packed_size
from bitsplit.artifact.state import empty_biases, float_state, join, split
from bitsplit.errors import ArtifactError
from bitsplit.network import kind_of
from bitsplit.network.norms import has_statistics
from bitsplit.quantizers import quantized_layers


def float_names(tensors: dict[str, Tensor]) -> list[str]:
    """Names of the stored tensors that are not part of a quantizer."""
    inside = ("weight_quantizer", "input_quantizer")
    return [name for name in tensors if split(split(name)[0])[1] not in inside]


def check_structure(model: nn.Module, manifest: Manifest, path: Path) -> None:
    """Raise ``ArtifactError`` unless ``model`` is float and has the layers and norms of a file."""
    if any(quantized_layers(model)):
        raise ArtifactError("this model is quantized already; load needs the float architecture")
    modules = dict(model.named_modules())
    problems = []
    for name in [*(layer.name for layer in manifest.layers), *manifest.plain_layers]:
        if name not in modules:
            problems.append(f"no layer {name}")
        elif kind_of(modules[name]) is None:
            problems.append(f"{name} is a {type(modules[name]).__name__}, not a layer with weights")
    for name in manifest.folded_norms:
        if name not in modules or not has_statistics(modules[name]):
            problems.append(f"no norm with statistics at {name}")
    _refuse(problems, model, manifest, path)


def check_tensors(model: nn.Module, manifest: Manifest, tensors: dict[str, Tensor], path: Path) -> None:
    """Raise ``ArtifactError`` unless the tensors of a file fit ``model``, which has the file's structure."""
    layers = [(model.get_submodule(stored.name), stored) for stored in manifest.layers]
    problems = [p for layer, stored in layers if (p := _layer_problem(layer, stored, tensors)) is not None]
    _refuse([*problems, *_tensor_problems(model, manifest, tensors)], model, manifest, path)


def _refuse(problems: list[str], model: nn.Module, manifest: Manifest, path: Path) -> None:
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise ArtifactError(
            f"{path} holds a {manifest.model_class}, which does not fit this {type(model).__name__}: "
            f"{'; '.join(problems[:3])}{more}"
        )


def _layer_problem(layer: nn.Module, stored: StoredLayer, tensors: dict[str, Tensor]) -> str | None:
    if tuple(layer.weight.shape) != stored.shape:
        return f"{stored.name}.weight is {list(layer.weight.shape)}, stored {list(stored.shape)}"
    if str(layer.weight.dtype) != stored.dtype:
        return f"{stored.name}.weight is {layer.weight.dtype}, stored {stored.dtype}"
    if stored.weight is not None:
        channels = kind_of(layer).matrix(layer, layer.weight.detach()).shape[:2].numel()
        scales = tensors[join(stored.name, "weight_quantizer.scale")].numel()
        if scales != channels:
            return f"{stored.name} has {channels} output channels, stored {scales} scales"
    return None


def _tensor_problems(model: nn.Module, manifest: Manifest, tensors: dict[str, Tensor]) -> list[str]:
    """Differences between the float tensors of the file and those that the model will need."""
    coded = {join(layer.name, "weight") for layer in manifest.layers if layer.weight is not None}
    own = {name: value for name, value in float_state(model).items() if name not in coded}
    stored = {name: tensors[name] for name in float_names(tensors)}
    problems = [f"{name} is not in the file" for name in own.keys() - stored.keys()]
    problems += [f"the model has no {name}" for name in stored.keys() - own.keys() - empty_biases(model)]
    for name in sorted(own.keys() & stored.keys()):
        mine, theirs = own[name], stored[name]
        if mine.shape != theirs.shape:
            problems.append(f"{name} is {list(mine.shape)}, stored {list(theirs.shape)}")
        elif mine.dtype != theirs.dtype:
            problems.append(f"{name} is {mine.dtype}, stored {theirs.dtype}")
    return sorted(problems)


def check_complete(manifest: Manifest, tensors: dict[str, Tensor], path: Path) -> None:
    """Raise ``ArtifactError`` unless all codes and scales that the manifest speaks of are there."""
    for layer in manifest.layers:
        for name, size in _sizes(layer).items():
            if name not in tensors:
                raise ArtifactError(f"{path} is damaged: {name} is missing")
            if size is not None and tensors[name].numel() != size:
                raise ArtifactError(
                    f"{path} is damaged: {name} has {tensors[name].numel()} values, not {size}"
                )


def _sizes(layer: StoredLayer) -> dict[str, int | None]:
    """Names of the quantizer tensors of a layer and, where the manifest tells, their numbers of values."""
    sizes: dict[str, int | None] = {}
    if layer.weight is not None:
        prefix = join(layer.name, "weight_quantizer")
        sizes[f"{prefix}.codes"] = packed_size(math.prod(layer.shape), layer.weight.bits)
        sizes |= {f"{prefix}.scale": None, f"{prefix}.zero_point": None}
    if layer.input is not None:
        prefix = join(layer.input_owner, "input_quantizer")
        sizes |= {f"{prefix}.scale": None, f"{prefix}.zero_point": None}
    return sizes
