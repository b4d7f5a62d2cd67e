"""What of a model is stored as it is: everything that its class does not make by itself."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from bitsplit.errors import ArtifactError
from bitsplit.quantizers import ActivationQuantizer, WeightQuantizer


def float_state(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers outside of quantizers, by name; each module once.

    A weight that has codes is left out: the codes are the truth.
    """
    state = {}
    for path, module in _plain_modules(model):
        has_codes = isinstance(getattr(module, "weight_quantizer", None), WeightQuantizer)
        for key, value in _own_tensors(module):
            if not (has_codes and key == "weight"):
                state[join(path, key)] = value.detach()
    return state


def empty_biases(model: nn.Module) -> set[str]:
    """Names of the biases that layers of ``model`` could have but do not."""
    return {
        join(path, "bias")
        for path, module in _plain_modules(model)
        if "bias" in module._parameters and module._parameters["bias"] is None
    }


def join(path: str, key: str) -> str:
    """The name of a tensor of the module at ``path``; the model itself has the empty path."""
    return f"{path}.{key}" if path else key


def split(name: str) -> tuple[str, str]:
    """The inverse of ``join``."""
    path, _, key = name.rpartition(".")
    return path, key


def _plain_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for path, module in model.named_modules():
        if isinstance(module, (WeightQuantizer, ActivationQuantizer)):
            continue
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            raise ArtifactError(
                f"{path or 'the model'} ({type(module).__name__}) keeps extra state, which cannot be stored "
                "without running code when it is loaded"
            )
        yield path, module


def _own_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for key, value in module._parameters.items():
        if value is not None:
            yield key, value
    for key, value in module._buffers.items():
        if value is not None and key not in module._non_persistent_buffers_set:
            yield key, value
