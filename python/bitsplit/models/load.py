"""Networks by name: ``torchvision:NAME``, ``timm:NAME``, ``file.py:function``, ``some.module:function``."""

from __future__ import annotations

import importlib
import importlib.util
import pickle
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from bitsplit.data.preprocessing import Preprocessing, for_timm, for_torchvision
from bitsplit.document import nearest
from bitsplit.errors import ModelError, first_line

PRETRAINED = "pretrained"
"""In place of a weights file: the weights that the library itself offers, downloaded if need be."""


def load_model(spec: str, weights: str | Path | None = None) -> nn.Module:
    """Build a network and fill it; eval mode.

    Args:
        spec: ``torchvision:NAME``, ``timm:NAME``, or ``FILE.py:FUNCTION`` / ``MODULE:FUNCTION``, a function
            without arguments that returns the network.  A file is executed: it is the user's own code.
        weights: a file with a state dict (safetensors, or what ``torch.save`` writes; nothing in it is
            executed), "pretrained" for the library's own weights, None for random weights (libraries) or
            those that the function gives.
    """
    source, name = _split(spec)
    if source in _LIBRARIES:
        model = _LIBRARIES[source](name, weights == PRETRAINED)
    elif weights == PRETRAINED:
        raise ModelError(f"{spec} comes from a function, which has no other weights than its own")
    else:
        model = _call(_module(source), name, spec)
    if weights is not None and weights != PRETRAINED:
        load_weights(model, Path(weights))
    return model.eval()


def is_of_library(spec: str) -> bool:
    """Whether a library knows what the network takes."""
    return _split(spec)[0] in _LIBRARIES


def preprocessing_of(spec: str, model: nn.Module) -> Preprocessing:
    """What turns a photo into the input of ``load_model(spec)``: the library's own, else ImageNet's usual."""
    source, name = _split(spec)
    if source == "timm":
        return for_timm(model)
    if source == "torchvision":
        import torchvision

        return for_torchvision(torchvision.models.get_model_weights(name).DEFAULT)
    return Preprocessing()


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill ``model`` from a state dict in a file, without wrappers (``{"state_dict": ...}``, ``module.``)."""
    state = _unwrapped(_read(path), path)
    # Files of PyTorch before 0.4.1 do not count the batches a norm has seen; load_state_dict allows that too.
    own = {
        name: value
        for name, value in model.state_dict().items()
        if name in state or not name.endswith(".num_batches_tracked")
    }
    if own.keys() != state.keys():
        missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
        raise ModelError(
            f"{path} does not fit {type(model).__name__}: {len(missing)} names are missing{_some(missing)}, "
            f"{len(extra)} are too many{_some(extra)}"
        )
    for name, value in own.items():
        if value.shape != state[name].shape:
            raise ModelError(
                f"{path} does not fit {type(model).__name__}: {name} is {list(value.shape)} in the model, "
                f"{list(state[name].shape)} in the file"
            )
    model.load_state_dict(state)


def _split(spec: str) -> tuple[str, str]:
    source, _, name = spec.rpartition(":")
    if not source or not name:
        raise ModelError(
            f"a model is named like torchvision:resnet18, timm:NAME or file.py:function, got {spec!r}"
        )
    return source, name


def _from_torchvision(name: str, pretrained: bool) -> nn.Module:
    import torchvision

    _require_known(name, torchvision.models.list_models(), "torchvision")
    return _built(lambda: torchvision.models.get_model(name, weights="DEFAULT" if pretrained else None), name)


def _from_timm(name: str, pretrained: bool) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise ModelError("timm is not installed: pip install 'bitsplit-ptq[timm]'") from error
    _require_known(name.partition(".")[0], timm.list_models(), "timm")
    return _built(lambda: timm.create_model(name, pretrained=pretrained), name)


_LIBRARIES: dict[str, Callable[[str, bool], nn.Module]] = {
    "torchvision": _from_torchvision,
    "timm": _from_timm,
}


def _require_known(name: str, known: list[str], library: str) -> None:
    if name not in known:
        raise ModelError(f"{library} has no model {name!r}; {nearest(name, known)}")


def _built(build: Callable[[], nn.Module], name: str) -> nn.Module:
    try:
        return build()
    except Exception as error:  # libraries and the user's code raise anything: no network, a wrong tag
        raise ModelError(f"{name} cannot be built: {first_line(error)}") from error


def _module(source: str) -> ModuleType:
    """The module of a file or an importable name."""
    try:
        if not source.endswith(".py"):
            return importlib.import_module(source)
        path = Path(source).resolve()
        if not path.is_file():
            raise ModelError(f"{source}: no such file")
        spec = importlib.util.spec_from_file_location(f"_bitsplit_model_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # classes in it can then be found by their module, as copying needs
        spec.loader.exec_module(module)
    except ImportError as error:
        raise ModelError(f"{source} cannot be imported: {first_line(error)}") from error
    except SyntaxError as error:
        raise ModelError(f"{source}, line {error.lineno}: {error.msg}") from error
    return module


def _call(module: ModuleType, name: str, spec: str) -> nn.Module:
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ModelError(f"{spec}: there is no function {name!r}; {nearest(name, known)}")
    model = _built(function, spec)
    if not isinstance(model, nn.Module):
        raise ModelError(f"{spec} must return a torch.nn.Module, it returned {type(model).__name__}")
    return model


def _read(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        hint = "; bits are --bits W4" if path.name.isdecimal() else ""
        raise ModelError(f"weights {path}: no such file{hint}") from error
    except (OSError, SafetensorError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ModelError(
            f"weights {path} cannot be read as plain tensors: {first_line(error)}; "
            "save them with torch.save(model.state_dict(), ...)"
        ) from error


def _unwrapped(state: Any, path: Path) -> dict[str, Tensor]:
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelError(f"weights {path} must hold a state dict (names and tensors)")
    if state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return dict(state)


def _some(names: list[str]) -> str:
    return f" ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else ""
